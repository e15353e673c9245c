"""Ray itself: sessions, nodes, tasks, locks, signals, versions, jobs.

Begin with `session` (starting or joining Ray) and `tasks` (work beside the regions). `reporting` tells progress.
"""

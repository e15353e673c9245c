"""Ray itself: sessions, nodes, tasks, locks, signals, versions, jobs.

Begin with `session` (starts or joins Ray) and `tasks` (work other than regions). `reporting` is about progress.
"""

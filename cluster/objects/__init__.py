"""Instance labels and the object table of a finished run, plane by plane or as volumes.

Begin with `request` and `run`; `tasks` is the work of a worker.
"""

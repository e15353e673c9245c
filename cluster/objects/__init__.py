"""Instance labels and the object table of a finished run, plane by plane or as volumes.

Begin with `run`; `tasks` and `volume_tasks` are the work of a worker.
"""

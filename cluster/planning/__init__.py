"""What a run will be, before anything is computed.

Begin with `settings`, `requests` and `plan`; `image_table` is the plan's list of images, `placement` says which members
live where, `device_probe` tries the ensemble once.
"""

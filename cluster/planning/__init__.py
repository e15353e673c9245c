"""What a run will be, before anything is computed.

Begin with `settings`, `resolved_settings` and `plan`; `image_table` is the plan's list of images, `cost` what they
take, `devices` where members live.
"""

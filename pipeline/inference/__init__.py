"""The engine: tiles in, posterior out. Pure torch; no reading, no writing.

Begin with `engine`, then `members` (what members say of a batch), `blending` and `posterior_builder`. `adaptive` gives
easy tiles fewer samples; `oom_splitting` makes a call again in parts; `device_transfer` moves pixels beside the work.
"""

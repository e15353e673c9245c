"""The inference engine: tiles in, posterior out. Pure torch; no reading, no writing.

Begin with `engine`, then `members` (outputs of the members for a batch), `blending` and `posterior_builder`.
`adaptive` draws fewer samples for easy tiles; `oom_splitting` repeats a call in smaller parts when memory runs out;
`device_transfer` copies pixels while the device computes.
"""

"""Members that nnU-Net trained, from the folder that its training leaves.

Begin with `member` (the entry and how it is loaded), then `plans` (what plans.json and dataset.json say), `prepared`
(its preprocessing) and `networks` (its architecture).
"""

"""Results against annotations, runs against each other, sentinels.

Begin with `run`; `image` measures one image.
"""

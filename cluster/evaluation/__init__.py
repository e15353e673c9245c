"""Results against annotations, runs against each other, and sentinels.

Begin with `run`; `image` measures one image.
"""

"""A whole run from beginning to end: regions, then images.

Begin with `run`; `setup` makes it ready, `finish_image` closes an image, `volume_run` joins three views of a volume.
"""

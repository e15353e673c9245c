"""Readers of file formats other than OME-Zarr.

Begin with `rasters`, which lists the images of a file and reads windows of them.
"""

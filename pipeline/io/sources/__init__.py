"""OME-Zarr that is read: finding images, their metadata, and windows of their pixels.

Begin with `discovery`; `ngff` reads the metadata that it finds, `reading` chooses level and channels and reads pixels.
"""

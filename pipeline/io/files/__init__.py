"""Files of other formats than OME-Zarr: which ones a source holds, their labels, and converting them.

Begin with `conversion`, one file to OME-Zarr; `raster_files` finds files, `label_files` pairs them with their labels.
"""

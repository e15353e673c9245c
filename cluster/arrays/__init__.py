"""Segments arrays in this process: an ensemble loaded once, with the same bytes as a run.

Begin with `loaded` (the ensemble on its device; serving holds the same), then `segmenting` (one image, region by
region, all in memory) and `segmentation` (what comes of it). `sources` reads NumPy, xarray, dask and zarr arrays alike.
"""

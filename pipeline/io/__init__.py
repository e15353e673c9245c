"""Everything that is opened, listed, read and written.

Begin with `storage`, the one place that opens a URL. In: `discovery` finds images, `ngff` and `rasters` know formats,
`reading` gives pixels. Out: `writer`, `pyramid` and `groups` make OME-Zarr, `conversion` makes it of raster files.
"""

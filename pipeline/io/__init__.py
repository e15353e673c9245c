"""Everything that is opened, listed, read and written.

Begin with `storage`, the one place that opens a URL. In: `sources` finds OME-Zarr images and reads their pixels,
`formats` reads files of other formats. Out: `outputs` makes OME-Zarr, `files` makes it of files of other formats.
"""

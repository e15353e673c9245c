"""OME-Zarr that is written: groups, arrays, labels, coarser levels.

Begin with `writer`, where the results of one image are stored; `arrays` plans their form, `pyramid` halves them.
"""

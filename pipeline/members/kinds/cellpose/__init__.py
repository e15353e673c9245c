"""Members that are networks of Cellpose, of any version.

Begin with `member` (the entry and its normalisation); `network` builds those of Cellpose 4, `residual` is the older
architecture, `size` estimates diameters, `kind` recognises and describes a file.
"""

"""Results in the forms that other programs read: outlines for ImageJ and QuPath, tables, images to correct.

Begin with `contours`, which turns an object's pixels into polygons; `outlines` streams those of an image to `rois` or
`geojson`. `tables` writes rows, `annotation` the images that are worth a person's corrections.
"""

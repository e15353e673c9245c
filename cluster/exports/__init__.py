"""Results for other programs: outlines for ImageJ and QuPath, tables, images to correct.

Begin with `outlines`.
"""

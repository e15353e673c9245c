"""The report of a run: which images to review first and why, with pictures, and the quality of the run as a whole.

Begin with `page` (`write_report`: the sections of the page), then `rows` (the images in order), `sections` (counts,
plots, what is known about the ensemble), `listing` (the data of the list of all images, beside the page if there are
many), `plates`, and `pictures` and `thumbnails` (an image, its outlines and its uncertainty map; thumbnails are made
during the run). ``report.html.j2`` is the page itself, with ``report.css`` and ``report.js``.
"""

"""The report of a run: what to look at first and why, with pictures, and what the run is worth as a whole.

Begin with `page` (`write_report`: what stands where), then `rows` (the images in order), `sections` (counts, plots,
what is known of the ensemble), `listing` (the data of the list of all images, beside the page where there are many),
`plates`, and `pictures` and `thumbnails` (an image, its outlines and its doubt; thumbnails are made in the stream).
``report.html.j2`` is the page itself, with ``report.css`` and ``report.js``.
"""

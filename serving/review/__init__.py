"""The review page: a person looks at what a run gave, the worst first, and says what of it can be used.

Begin with `app` (`review_app`: mounted under ``/review``, or served alone by ``chorus review``), then `run` (the tables
of a run, read again when they change), `gallery` (order, filters and pages of its images), `decisions` (what reviewers
said, one small object each), and `pixels` and `tiles` (what the viewer shows). ``static`` is the page itself: plain
modules, and libraries in ``static/vendor``; nothing is built and nothing is fetched from elsewhere.
"""

"""The review page: a person looks at a run's results, the worst first, and decides what of them can be used.

Begin with `app` (`review_app`: mounted under ``/review``, or served alone by ``chorus review``), then `run` (the tables
of a run, reloaded when they change), `gallery` (order, filters and pages of its images), `decisions` (the reviewers'
decisions, one small object each), and `pixels` and `tiles` (what the viewer shows). ``static`` is the page itself:
plain modules, and libraries in ``static/vendor``; nothing is built and nothing is fetched from elsewhere.
"""

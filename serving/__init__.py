"""Serving: one image at a time over HTTP, and the page for reviewing a run.

Begin with `app`, which puts the rest on Ray Serve; `web` is the web application without Ray, `prediction` what computes
a prediction, by the code that a run uses, `contract` what both agree on, `review` the page.
"""

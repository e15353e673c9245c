"""Online: one image at a time over HTTP, and the page for looking at a run.

Begin with `chorus.serving.app`, which puts the rest on Ray Serve; `chorus.serving.api` is the web application without
Ray, and `chorus.serving.predictor` what computes a prediction, by the code that a run uses.
"""

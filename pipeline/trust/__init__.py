"""What turns posteriors into decisions: ground truth of several experts, metrics, scores, thresholds, flags.

Begin with `metrics` (how good a segmentation is), `staple` and `votes` (what several experts agree on), `reference`
(what an ensemble is known to be worth) and `flags` (what to look at, and why).
"""

"""Comparison of results with the ground truth: Dice, AP, calibration error, failure detection, comparison of runs.

Begin with `segmentation` (pixels) and `objects` (instances); `failure_detection` measures whether scores find poor
results.
"""

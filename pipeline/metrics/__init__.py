"""Results against the truth: Dice, AP, calibration error, failure detection, comparison of runs.

Begin with `segmentation` (pixels) and `objects` (instances); `failure_detection` asks whether scores find bad results.
"""

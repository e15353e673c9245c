"""Evaluate, calibrate, flag, shift, sentinels, truth, effort: how far results are to be trusted.

Begin with `evaluate` (results against annotations), then `calibrate` (a reference set) and `flag`.
"""

"""Data set shift and batch effects: whether a run is like those before.

Begin with `shift`; `hypothesis_tests` and `two_samples` are the statistics.
"""

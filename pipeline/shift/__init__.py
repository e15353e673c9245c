"""Data set shift and batch effects: is this run like those before?

Begin with `shift`; `hypothesis_tests` and `two_samples` are the statistics.
"""

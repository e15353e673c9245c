"""Money and time: what a run has cost, will cost, and would cost on other clusters.

Begin with `accounting` and `forecast`; `simulation` plays a run through with discrete events.
"""

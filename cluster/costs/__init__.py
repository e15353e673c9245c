"""Time and money: what a run has cost, will cost, and would cost on other clusters.

Begin with `accounting` and `forecast`; `simulation` simulates a run with discrete events.
"""

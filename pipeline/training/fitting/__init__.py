"""Fitting one member: network, loss, learning rate, schedule, and the fold that runs them.

Begin with `fold`.
"""

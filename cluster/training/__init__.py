"""Folds of a training on devices, and the ensemble that they become.

Begin with `run`.
"""

"""Training of folds on devices, and the ensemble that they form.

Begin with `run`.
"""

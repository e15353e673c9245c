"""Annotated images as training data: pairs, splits into folds, patches and their augmentation.

Begin with `pairs`.
"""

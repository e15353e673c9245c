"""Predicts images with one ensemble on one device. Knows neither HTTP nor Ray.

Begin with `predictor`, then `steps` (plan, prepare, conclude); images too large for one answer go to `large_images`.
"""

"""Ensembles: `ensemble` shows, checks, makes and edits them; `train`, `models` and `bench` beside it.

`options` and `train_options` are their options, `view` how an ensemble is shown.
"""

"""Training of members: annotated images become the weights of an ensemble, fold by fold.

Begin with `settings` and `fitting.fold`; `chorus.cluster.training.run` decides where folds run, and restarts a fold
whose process dies.
"""

"""How members come to be: annotated images become the weights of an ensemble, fold by fold.

Begin with `settings` and `fold`; where folds run, and what becomes of one whose process dies, is
`chorus.cluster.training.run`.
"""

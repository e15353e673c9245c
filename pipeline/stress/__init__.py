"""How an ensemble, and what is said of its results, stand images that were taken badly.

`corruptions` makes such images of good ones, at five levels; `summary` says what became of Dice, expected Dice, bound
and flags. Begin with `chorus.cluster.commands.stress`.
"""

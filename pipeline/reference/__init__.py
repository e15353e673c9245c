"""What an ensemble is known to be worth: its scores on labelled images, and what follows for new ones.

Begin with `reference` (the set) and `flags` (what is said of an image, with reasons in `reasons`). `ood` measures how
unlike the reference an image is, `quality` the Dice to expect, `conformal` bounds on it.
"""

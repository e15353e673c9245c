"""Quality of an ensemble on labelled images, and what follows for new images.

Begin with `reference` (the set) and `flags` (the judgement of an image, with reasons in `reasons`). `ood` measures
how unlike the reference set an image is, `quality` the expected Dice, `conformal` bounds on it.
"""

"""Scores of a whole image: uncertainty, image quality, ranking.

Begin with `image_scores`: sums of regions that add up to the scores of their image.
"""

"""What is said of a whole image: scores, image quality, ranking.

Begin with `image_scores`: sums of regions that add up to the scores of their image.
"""

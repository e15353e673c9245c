"""The drawings of several annotators become one ground truth: votes, STAPLE, instances, and the annotators' agreement.

Begin with `ground_truth` (one image) and `truths` (the ground truth of each image of a run); `agreement` compares
annotators.
"""

"""Several annotators become one truth: votes, STAPLE, instances, and how far they agree.

Begin with `truths` (which way) and `ground_truth` (the work); `agreement` compares annotators.
"""

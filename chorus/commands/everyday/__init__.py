"""Convert, predict, plan, rank, objects, report, export, review: what people do with images every day.

Begin with `predict`.
"""

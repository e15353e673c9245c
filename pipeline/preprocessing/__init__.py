"""From stored values to what a network sees: statistics that merge, normalisation, resampling.

Begin with `preparation`, which an ensemble declares; `sketches` are the statistics, computed once per image.
"""

"""From stored values to the input of a network: statistics that merge, normalisation, resampling.

Begin with `preparation`, which an ensemble declares; `sketches` compute the statistics, once per image.
"""

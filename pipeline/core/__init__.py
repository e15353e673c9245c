"""Geometry, symmetries, fields, the posterior, provenance: pure. No reading, no writing, no networks.

Begin with `geometry` (where tiles and regions lie), then `fields` (which statistics are kept per pixel) and `posterior`
(how they follow from samples).
"""

"""Geometry, symmetries, fields, the posterior, provenance: pure. No reading, no writing, no networks.

Begin with `geometry` (where tiles and regions lie), then `fields` (what is kept of each pixel) and `posterior` (how it
follows from samples).
"""

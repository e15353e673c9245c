"""Geometry, symmetries, fields, the posterior, provenance: pure. No reading, no writing, no networks.

Begin with `geometry` and `tiling` (where regions and tiles lie), then `fields` (statistics that are kept per pixel) and
`sample_sums` (how they follow from samples).
"""

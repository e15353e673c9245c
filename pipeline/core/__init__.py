"""Geometry, symmetries, the posterior, provenance: pure. No reading, no writing, no networks.

Begin with `geometry` (where tiles and regions lie), then `posterior` (what samples say per pixel).
"""

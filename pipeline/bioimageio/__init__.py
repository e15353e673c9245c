"""Ensembles leave as BioImage.IO packages, and packages are tested.

Begin with `export`; `conformance` runs the test tensors of a package.
"""

"""Export of ensembles as BioImage.IO packages, and tests of packages.

Begin with `export`; `conformance` runs the test tensors of a package.
"""

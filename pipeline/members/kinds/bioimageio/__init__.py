"""Members from BioImage.IO packages: their description, networks, pre- and postprocessing.

Begin with `member`; `package` opens and checks the archive, `description` reads its ``rdf.yaml``.
"""

"""``ensemble.yaml``: what it may say, and how it is loaded, made and edited.

Begin with `spec` (the fields), then `ensemble` (what is loaded). `schema` writes docs/ensemble.schema.json.
"""

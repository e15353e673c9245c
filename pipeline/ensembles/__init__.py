"""``ensemble.yaml``: its fields, and how it is loaded, created and edited.

Begin with `spec` and `entries` (the fields), then `ensemble` (what is loaded). `schema` writes
docs/ensemble.schema.json.
"""

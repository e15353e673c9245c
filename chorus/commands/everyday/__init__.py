"""Convert, objects, export, review: what comes before and after `chorus predict`.

`predict`, `plan`, `rank` and `report` themselves stand in `chorus.cli`.
"""

"""Nodes and devices of a run, before it starts.

Begin with `placement`: which members live where. `device_probe` tries the ensemble once, `cluster_file` says which
nodes are available and what they cost, `schedule` what a simulated run is made of.
"""

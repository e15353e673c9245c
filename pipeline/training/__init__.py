"""How members come to be: networks trained here, written as weights and an ``ensemble.yaml`` that names them.

Begin with `quick`, which trains a small ensemble on simulated fields while one waits.
"""

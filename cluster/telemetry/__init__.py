"""Metrics, logs, profiles and the timeline of a run.

Begin with `metrics`, which names them all (docs/metrics.md).
"""

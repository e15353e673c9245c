"""Kinds of networks, one file or folder each: it declares the kind and loads its weights.

Begin with `smp`, the most common kind; `chorus.pipeline.members.registry` collects all of them.
"""

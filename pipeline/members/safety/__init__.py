"""Weights from others are data: what may be read, and a trial within limits before a program of theirs runs.

Begin with `script` (TorchScript against a list of allowed operators); `pickles` reads pickles without running them.
"""

"""Trained networks from any source behind one small contract.

Begin with `contract.Member`; each kind of network has a file of its own that loads it without running code
that the file brings along.
"""

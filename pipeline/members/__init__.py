"""Trained networks from any source behind one small contract.

Begin with `contract.Member` and `kind.MemberKind`; each kind of network has a file of its own in `kinds` that declares
it and loads it without running code that the weights bring along (`safety`), and `registry` knows all kinds, those of
plug-ins too.
"""

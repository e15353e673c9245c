"""What a person types, one file a command, in the groups of `chorus --help`.

`chorus.cli` is their tree and imports each when it is called. `everyday` holds a run and what comes after it, `trust`
how far results are right, `ensembles` what makes and shows ensembles, `cluster` what needs machines of others. Each
only reads options, calls one function of the floors below, and prints.
"""

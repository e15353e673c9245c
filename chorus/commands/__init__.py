"""The commands of the command line, one file each, in the groups of `chorus --help`.

`chorus.cli` is their tree and imports each when it is called. `everyday` holds a run and what comes after it, `trust`
measures how far results are right, `ensembles` makes and shows ensembles, `cluster` uses other machines. Each
only reads options, calls one function of the rooms below, and prints.
"""

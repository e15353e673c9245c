"""What a person types, one file a command, in the groups of `chorus --help`.

`chorus.cli` puts them together; `everyday` holds what comes after a run, `trust` how far results are right,
`ensembles` what makes and shows ensembles, `cluster` what needs machines of others. Each only reads options, calls one
function of the floors below, and prints.
"""

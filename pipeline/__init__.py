"""What is done: images, geometry, members, inference, posterior, instances, trust, outputs. Never imports Ray.

Begin with `core` (geometry and posterior), then `inference` (a window and an ensemble become a posterior) and `io` (how
pixels come in and results go out). `ensembles` and `members` are the networks; `scores`, `reference` and `metrics` say
how far to trust what they answer. Rooms use those below them in the order of the contracts in pyproject.toml.
"""

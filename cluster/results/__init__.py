"""Results of a run, opened for a program or a notebook.

Begin with `run_results`; `image_results` are the arrays of one image, opened and not yet read.
"""

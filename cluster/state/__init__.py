"""The finished work of a run, from which it resumes: ledger, run record, scores.

Begin with `ledger`: a record is written after the data that it stands for.
"""

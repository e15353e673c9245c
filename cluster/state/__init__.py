"""What is finished, so that a run resumes: ledger, run record, scores.

Begin with `ledger`: a record is written after the data that it stands for.
"""

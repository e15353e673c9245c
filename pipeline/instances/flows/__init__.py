"""Pixels follow flows to the centres of their objects, the same bits in every crop.

Begin with `dynamics`; `seeds` makes objects of where many paths end, `flow_error` says how well flows fit them.
"""

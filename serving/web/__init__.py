"""The web application, without Ray: routes, bodies, tokens.

Begin with `api`; every request passes `request_gate` first.
"""

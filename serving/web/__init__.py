"""The web application, without Ray: routes, bodies, tokens.

Begin with `api`; `request_gate` is what every request passes first.
"""

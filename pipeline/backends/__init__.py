"""Members at the highest speed of a device: converted for other runtimes, cached, compared with PyTorch, and measured.

Begin with `loading` (members on a backend), then `member` (conversion and check at the first call) and `choosing`.
"""

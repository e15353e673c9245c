"""Members at the best speed of a device: converted for other runtimes, kept, checked against PyTorch, and measured."""

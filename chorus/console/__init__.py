"""What all commands share on a terminal: options, progress with a rate and an ETA, how numbers are written.

Begin with `options`.
"""

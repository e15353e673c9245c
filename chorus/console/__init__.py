"""What all commands share on a terminal: options, progress with rate and remaining time, formatting of numbers.

Begin with `options`.
"""

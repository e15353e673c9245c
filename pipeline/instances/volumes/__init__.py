"""Objects of volumes, block by block: the same result for every division into regions.

Begin with `blocks` (the fixed partition) and `regions` (the objects of a block as they are in the whole volume).
"""

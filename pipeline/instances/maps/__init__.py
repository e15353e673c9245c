"""Objects from maps: distances, boundaries and affinities, of planes and volumes.

Begin with `rules`, which turns the maps of a box into labels, and `blocks`, the fixed grid on which that is done;
`joining` unites the objects of neighbouring blocks.
"""

"""Objects by stars: a point is an object's if it is probable enough, and rays lead from it to the object's outline.

Begin with `regions`, the objects of a region of a plane. `candidates` are points with their rays, `polygons` what rays
enclose, `suppression` chooses among candidates of one object, `drawing` makes pixels of the chosen ones.
"""

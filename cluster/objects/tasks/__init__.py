"""Tasks of a worker for the objects of an image; independent of Ray. Every task may safely be repeated.

Begin with `stages` (their order and files), then `finding` (a region) and `numbering` (an image); `components`,
`map_pieces`, `stars` and `volumes` are the kinds of objects, `rows` their tables.
"""

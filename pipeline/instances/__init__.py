"""Individual objects: from labels to flows, and from foreground and flows back to labels.

Begin with `whole_image`, for planes that fit in memory, and `regions`, for planes of any size; `flows` holds how pixels
find their object, `volumes` the same in three dimensions.
"""

"""Objects one by one: from labels to flows, and from foreground and flows back to labels.

Begin with `whole_image`, for planes that fit in memory.
"""

"""What is said wherever an ensemble has no reference set; apart, so that saying it imports nothing."""

IN_SHORT = "no reference set"
"""Of a single image, of which there may be many."""
NO_REFERENCE = (
    f"the ensemble has {IN_SHORT}: scores say which images are more doubtful than others, not how good they are, "
    "and no image is flagged; `chorus calibrate` makes one of labelled images"
)

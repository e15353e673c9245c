"""What is said wherever an ensemble has no reference set; apart, so that saying it imports nothing."""

NO_REFERENCE = (
    "the ensemble has no reference set: scores say which images are more doubtful than others, not how good they are, "
    "and no image is flagged; `chorus calibrate` makes one of labelled images"
)

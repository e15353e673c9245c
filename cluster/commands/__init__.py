"""Work that is neither a run nor its results: convert, truth, calibrate, effort, sentinels."""

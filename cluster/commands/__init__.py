"""Commands that are neither a run nor work on its results: convert, truth, calibrate, effort, sentinels."""

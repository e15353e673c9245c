"""Simulated images for `make demo`, benchmarks and tests."""

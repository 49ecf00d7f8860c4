"""Measurements, side by side and interleaved. Never run as tests; results are in docs/performance.md."""

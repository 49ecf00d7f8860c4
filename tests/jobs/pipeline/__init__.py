"""Tests of `jobs.pipeline`."""

"""Tests of `jobs.cli`."""

"""Tests of `jobs.checks`."""

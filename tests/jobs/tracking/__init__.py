"""Tests of `jobs.tracking`."""

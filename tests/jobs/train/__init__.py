"""Tests of `jobs.train`."""

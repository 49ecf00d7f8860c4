"""Tests of `jobs.common`."""

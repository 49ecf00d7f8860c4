"""Tests of `jobs.promote`."""

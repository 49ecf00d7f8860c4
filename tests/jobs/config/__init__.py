"""Tests of `jobs.config`."""

"""Tests of `jobs.spark`."""

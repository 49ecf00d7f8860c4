"""Tests of `jobs.local`."""

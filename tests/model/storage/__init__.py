"""Tests of files, conditional writes and leases."""

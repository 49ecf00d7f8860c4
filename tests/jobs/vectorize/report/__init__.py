"""Tests of the report, `inspect` and verification."""

"""Tests of the index: duplicates and splits."""

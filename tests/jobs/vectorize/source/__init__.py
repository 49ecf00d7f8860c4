"""Tests of sources: listing, tables, IDX files, reading."""

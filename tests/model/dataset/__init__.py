"""Tests of DataSets: manifest, shards, their cache."""

"""Metrics of a model on a split, summed over workers."""

"""Metrics of a model on a split, from counts that are summed over workers."""

"""The two DAGs and what they share."""

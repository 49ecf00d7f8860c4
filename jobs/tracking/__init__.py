"""The only package that imports MLflow: runs, the registry, plots."""

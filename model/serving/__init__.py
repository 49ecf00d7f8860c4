"""The model that MLflow stores and that programs load."""

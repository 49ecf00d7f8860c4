"""The model that MLflow stores and a program loads."""

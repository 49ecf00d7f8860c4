"""This machine's embedded stack: the environment, the demo, Airflow and MLflow."""

"""Spark jobs, tracking and the command line; everything between Airflow and `model`."""

"""Images to a trained CNN in one pipeline: Spark vectorizes and trains, Airflow schedules, MLflow keeps the models."""

"""The training job on Spark, from a config to a registered model."""

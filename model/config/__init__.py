"""The settings that workers and models need, as pydantic models."""

"""Pipelines' files: made for a pile of images, or of the configs of version 0.1.0."""

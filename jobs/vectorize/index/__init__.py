"""What is known of each image from version to version: hashes, duplicates, splits."""

"""What several jobs share and no library has: redaction of secrets, logging, local paths, Arrow tables."""

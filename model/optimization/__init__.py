"""What one worker does: forward, optimizer, averaging with its peers."""

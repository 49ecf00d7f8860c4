"""What all workers do together: segments, failures, checkpoints, the epoch loop."""

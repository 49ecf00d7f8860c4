"""Random changes of training images, drawn by (seed, epoch, example)."""

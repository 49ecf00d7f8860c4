"""Random changes of training images, determined by (seed, epoch, example)."""

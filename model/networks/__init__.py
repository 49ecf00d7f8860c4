"""The networks: residual ones, sequences of layers, and anyone's own."""

"""How workers meet and sum tensors: store, rendezvous, all-reduce."""

"""How workers find each other and sum tensors: store, rendezvous, all-reduce."""

"""Architecture search: search space, supernet, search schemes, and derivation of a network."""

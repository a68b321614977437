"""The ring regime: a program plans a block of problems, and weights pass through a ring of shared memory. See `plan`."""

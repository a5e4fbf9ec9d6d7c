"""A trained network, asked one batch at a time."""

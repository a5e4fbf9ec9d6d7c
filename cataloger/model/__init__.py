"""A trained model, asked one batch at a time."""

"""A model applied, by night or on demand."""

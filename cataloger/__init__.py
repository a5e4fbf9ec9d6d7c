"""cataloger keeps every product of a shop's catalog in the right category, every night."""

__version__ = "0.1.0"

"""What a model answers, how it learns to, and how right it is."""

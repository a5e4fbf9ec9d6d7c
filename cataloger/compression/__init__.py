"""A cheaper model out of a trained one: fewer layers, fewer tokens, whole numbers of eight bits."""

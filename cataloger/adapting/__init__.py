"""A model and its labels for a catalog that has changed: new categories, another tree."""

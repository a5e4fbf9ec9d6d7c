"""The systems around us, in our own words."""

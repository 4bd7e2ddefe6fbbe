"""Where a model can be cut, and its stages as Models."""

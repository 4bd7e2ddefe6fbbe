"""Structured pruning: whole heads, hidden units and layers go, and the shapes shrink with them."""

"""Links without hardware: a shaping proxy and the traces that drive it."""

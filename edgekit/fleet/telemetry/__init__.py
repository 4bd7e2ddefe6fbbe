"""Windows of what a device saw, and what can be learned from many: pure functions over numbers."""

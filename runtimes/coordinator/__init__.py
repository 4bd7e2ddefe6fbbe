"""The coordinator: executes a plan over sessions here and there, by a deadline, and follows the network."""

"""Transformer encoders as one kind of block, whatever library they come from."""

"""Bottlenecks: features at a cut made small for the wire."""

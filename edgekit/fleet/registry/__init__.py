"""Bundles by content: each file once, however many bundles hold it."""

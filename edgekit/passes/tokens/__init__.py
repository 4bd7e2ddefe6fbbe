"""Fewer tokens from block to block: which to keep, which to merge, how many where.

The mathematics stands in scores, reducers and schedule; what knows of modules is stack and prune.
"""

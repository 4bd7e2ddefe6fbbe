"""Whom a rollout is for, in which order, what must hold, and what to do next: pure functions over plain values."""

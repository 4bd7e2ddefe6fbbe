"""Trained models that a user can name (registry SAMPLES). Their weights come from packages, never from a download."""

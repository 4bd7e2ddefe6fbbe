"""Spans of requests: written by device and nodes under one trace id, read back, joined and accounted for."""

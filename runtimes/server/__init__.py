"""Nodes: `edgekit serve`, stages and whole models over the Open Inference Protocol v2 (REST and gRPC)."""

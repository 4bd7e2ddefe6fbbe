"""What crosses between nodes: the Open Inference Protocol messages and how frames travel in them."""

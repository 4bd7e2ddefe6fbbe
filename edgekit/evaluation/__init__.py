"""What embeddings and answers are worth on labelled data, and how sure that is. Numpy alone."""

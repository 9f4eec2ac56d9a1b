"""2-D max-pooling: kernels and their table lines."""

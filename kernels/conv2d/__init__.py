"""2-D convolution: kernels and their table lines."""

"""The matrix product that im2col stands on: a ladder of kernels and how they are launched."""

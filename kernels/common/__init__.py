"""What the kernels of several folders share."""

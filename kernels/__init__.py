"""Every hand-written kernel of pyconv, and the table lines that describe them. See ``kernels/README.md``."""

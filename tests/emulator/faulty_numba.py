"""Numba kernels of one block, each right if FAULT is empty; the line of the fault ends in `# fault`."""

from numba import cuda


def reverse(Sum, FAULT):
    """y = x reversed, 64 elements at a time, by way of shared memory."""

    @cuda.jit
    def kernel(x, y):
        tile = cuda.shared.array(64, Sum)
        i = cuda.threadIdx.x
        for first in range(0, x.shape[0], 64):
            tile[i] = x[first + i]
            if FAULT != "no barrier":
                cuda.syncthreads()
            if FAULT == "a barrier for some" and i < 10:
                cuda.syncthreads()
            y[x.shape[0] - 64 - first + i] = tile[63 - i]
            if FAULT != "no second barrier":
                cuda.syncthreads()

    return kernel


def shift(Sum, FAULT):
    """y = x, and one thing that no kernel may do."""

    @cuda.jit
    def kernel(x, y):
        i = cuda.threadIdx.x
        tile = cuda.shared.array(64, Sum)
        own = cuda.local.array((2, 2), Sum)
        own[0, 0] = x[i]
        y[i] = own[0, 0]
        if FAULT == "negative index":
            tile[i - 1] = x[i]  # fault
        if FAULT == "beyond the end":
            y[i] = x[i + 1]  # fault
        if FAULT == "beyond a local array":
            own[0, 2] = x[i]  # fault
        if FAULT == "a write to an operand":
            x[i] = own[0, 0]  # fault
        if FAULT == "a read of what nobody wrote":
            y[i] = tile[i]  # fault
        if FAULT == "two owners":
            y[0] = x[i]  # fault
        if FAULT == "a local that is not set":
            y[i] = own[1, 1]

    return kernel


def branches(Sum, FAULT):
    """Barriers on two lines."""

    @cuda.jit
    def kernel(x, y):
        i = cuda.threadIdx.x
        if FAULT == "" or i < 32:
            cuda.syncthreads()
        else:
            cuda.syncthreads()  # fault
        y[i] = x[i]

    return kernel

# Max-pooling's linear map with the argmax held fixed: y[n,c,p,q] = x[n,c,argmax[n,c,p,q]]. The twin of
# gather.cu.
#
# It is the tangent of max-pooling and the derivative of its backward. A window that covers nothing reads as
# 0; so does an argmax outside the plane, since a caller may pass its own.
#
# Layouts: both; an array has its layout in its strides.
# Thread:  one result.
# Block:   results that are neighbours in memory.
from numba import cuda
from pyconv.kernels.common.index_numba import place


def gather(Value):
    @cuda.jit
    def kernel(problem, channels_last, x, argmax, y):
        element = cuda.grid(1)
        if element >= problem.n * problem.c * problem.p * problem.q:
            return
        n, c, p, q = place(element, problem.c, problem.p, problem.q, channels_last)
        winner = argmax[n, c, p, q]
        value = Value(0)
        if 0 <= winner < problem.h * problem.w:
            value = Value(x[n, c, winner // problem.w, winner % problem.w])
        y[n, c, p, q] = value

    return kernel

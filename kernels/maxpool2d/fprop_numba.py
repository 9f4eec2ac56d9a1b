# Max-pooling forward: y[n,c,p,q] = max over r,s of x[n,c,h,w], and where the winner is. The twin of fprop.cu
# and fprop_argmax.cu, as their fprop_any: for any window, stride and dilation.
#
#   h = p*stride_h - pad_top  + r*dilation_h
#   w = q*stride_w - pad_left + s*dilation_w
#
# Layouts: both; an array has its layout in its strides.
# Thread:  one result. It looks at the taps inside the image in row-major order.
# Block:   results that are neighbours in memory.
#
# torch's rule: a later element wins if it is larger than the best so far, or is a NaN. So the first of equal
# values stays, and of several NaNs the last is the result. A window that covers nothing gives -inf and place
# -1. Value is the type of a comparison: float32, for arrays of float64 float64.
from math import inf

from numba import cuda
from pyconv.kernels.common.index_numba import input_at, place


def fprop(Value):
    @cuda.jit
    def kernel(problem, channels_last, x, y):
        element = cuda.grid(1)
        if element >= problem.n * problem.c * problem.p * problem.q:
            return
        n, c, p, q = place(element, problem.c, problem.p, problem.q, channels_last)
        best = Value(-inf)
        for r in range(problem.r):
            h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.h)
            if h < 0:
                continue
            for s in range(problem.s):
                w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.w)
                if w < 0:
                    continue
                value = Value(x[n, c, h, w])
                if value > best or value != value:
                    best = value
        y[n, c, p, q] = best

    return kernel


def fprop_argmax(Value):
    @cuda.jit
    def kernel(problem, channels_last, x, y, argmax):
        element = cuda.grid(1)
        if element >= problem.n * problem.c * problem.p * problem.q:
            return
        n, c, p, q = place(element, problem.c, problem.p, problem.q, channels_last)
        best = Value(-inf)
        winner = -1
        for r in range(problem.r):
            h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.h)
            if h < 0:
                continue
            for s in range(problem.s):
                w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.w)
                if w < 0:
                    continue
                value = Value(x[n, c, h, w])
                if winner < 0 or value > best or value != value:  # the first wins even if it is -inf
                    best = value
                    winner = h * problem.w + w
        y[n, c, p, q] = best
        argmax[n, c, p, q] = winner

    return kernel

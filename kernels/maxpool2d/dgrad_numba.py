# Max-pooling backward: dx[n,c,h,w] = sum of dy[n,c,p,q] over the windows whose argmax names (h, w). The twin
# of dgrad.cu, as its dgrad_any.
#
# Gathered, not scattered: each element of dx looks at the windows that cover it. So it has one owner, needs
# no atomics, and adds in row-major order of (p, q) always. An argmax that lies outside its own window (a
# caller may pass any) is seen by no element and adds nowhere.
#
# Layouts: both; an array has its layout in its strides.
# Thread:  one element of dx.
# Block:   elements that are neighbours in memory.
from numba import cuda
from pyconv.kernels.common.index_numba import output_at, place


def dgrad(Sum):
    @cuda.jit
    def kernel(problem, channels_last, dy, argmax, dx):
        element = cuda.grid(1)
        if element >= problem.n * problem.c * problem.h * problem.w:
            return
        n, c, h, w = place(element, problem.c, problem.h, problem.w, channels_last)
        sum = Sum(0)
        for r in range(problem.r - 1, -1, -1):  # the last tap lies in the first window
            p = output_at(h, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.p)
            if p < 0:
                continue
            for s in range(problem.s - 1, -1, -1):
                q = output_at(w, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.q)
                if q < 0:
                    continue
                if argmax[n, c, p, q] == h * problem.w + w:
                    sum += Sum(dy[n, c, p, q])
        dx[n, c, h, w] = sum

    return kernel

# Direct convolution, naive: the definition as a kernel. The twin of direct_naive.cu; page one of the course
# in README.md.
#
#   fprop   y[n,k,p,q]  = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
#   dgrad   dx[n,c,h,w] =           sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]
#   wgrad   dw[k,c,r,s] =           sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]
#
#   where h = p*stride_h - pad_top  + r*dilation_h
#         w = q*stride_w - pad_left + s*dilation_w
#
# Layouts: both, with any groups; c of the filter counts within its group, as in w[k,c/groups,r,s]. An array
#          has its layout in its strides: x[n,c,h,w] is the same element in either. `filter` is their w.
# Thread:  one element of the result. Its loops are the sum of the equation, in the order of the equation.
# Block:   elements that are neighbours in memory (nchw): a warp then writes whole cache lines.
#
# Sum is the type that sums are kept in: float32, for arrays of float64 float64. Every loop adds into a sum of
# its own, which it hands to the loop around it: the rounding error then grows with the longest loop and not
# with the product of them all. Numba computes indices in 64 bits; nvcc's are 32.
from numba import cuda
from pyconv.kernels.common.index_numba import input_at, output_at, place


def direct_naive_fprop(Sum):
    @cuda.jit
    def kernel(problem, channels_last, x, filter, bias, y):
        element = cuda.grid(1)
        if element >= problem.n * problem.k * problem.p * problem.q:
            return
        n, k, p, q = place(element, problem.k, problem.p, problem.q, channels_last)
        first_c = k // problem.group_k * problem.group_c  # of the group

        sum = Sum(0)
        for c in range(problem.group_c):
            channel_sum = Sum(0)
            for r in range(problem.r):
                h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.h)
                if h < 0:
                    continue  # padding takes no part
                for s in range(problem.s):
                    w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.w)
                    if w < 0:
                        continue
                    channel_sum += Sum(x[n, first_c + c, h, w]) * Sum(filter[k, c, r, s])
            sum += channel_sum
        if bias.shape[0] > 0:
            sum += Sum(bias[k])
        y[n, k, p, q] = sum

    return kernel


def direct_naive_dgrad(Sum):
    @cuda.jit
    def kernel(problem, channels_last, dy, filter, dx):
        element = cuda.grid(1)
        if element >= problem.n * problem.c * problem.h * problem.w:
            return
        n, c, h, w = place(element, problem.c, problem.h, problem.w, channels_last)
        first_k = c // problem.group_c * problem.group_k  # of the group

        sum = Sum(0)
        for k in range(first_k, first_k + problem.group_k):
            filter_sum = Sum(0)
            for r in range(problem.r):
                p = output_at(h, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.p)
                if p < 0:
                    continue
                for s in range(problem.s):
                    q = output_at(w, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.q)
                    if q < 0:
                        continue
                    filter_sum += Sum(dy[n, k, p, q]) * Sum(filter[k, c % problem.group_c, r, s])
            sum += filter_sum
        dx[n, c, h, w] = sum

    return kernel


def direct_naive_wgrad(Sum):
    @cuda.jit
    def kernel(problem, channels_last, x, dy, dw):
        element = cuda.grid(1)
        if element >= problem.k * problem.group_c * problem.r * problem.s:
            return
        k, c, r, s = place(element, problem.group_c, problem.r, problem.s, channels_last)
        first_c = k // problem.group_k * problem.group_c  # of the group

        sum = Sum(0)
        for n in range(problem.n):
            image_sum = Sum(0)
            for p in range(problem.p):
                h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.h)
                if h < 0:
                    continue
                row_sum = Sum(0)
                for q in range(problem.q):
                    w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.w)
                    if w < 0:
                        continue
                    row_sum += Sum(dy[n, k, p, q]) * Sum(x[n, first_c + c, h, w])
                image_sum += row_sum
            sum += image_sum
        dw[k, c, r, s] = sum

    return kernel

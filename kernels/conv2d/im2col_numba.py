# im2col and col2im: the matrix whose product with the filters is a convolution, and the way back. The twin of
# im2col.cu.
#
#   im2col   col[n, group, (c,r,s), (p,q)] = x[n,c,h,w], 0 where h,w is padding
#   col2im   dx[n,c,h,w] = sum of dcol[n, group, (c,r,s), (p,q)] over the r,s,p,q that map to h,w
#
#            h = p*stride_h - pad_top  + r*dilation_h
#            w = q*stride_w - pad_left + s*dilation_w
#
#   fprop    y = w * col        dgrad    dcol = w^T * dy, dx = col2im(dcol)        wgrad    dw = dy * col^T
#
# Layouts: both. The matrix has seven indices here; im2col_gemm_numba_launch.py lays it out as lines of pixels
#          (nchw) or of channels (nhwc), as x has them.
# Thread:  all taps of one pixel of one channel.
# Lanes:   run along the pixels (nchw) or the channels (nhwc), as x, dx and the lines of col do.
#
# col2im is a gather: a thread adds up all that reaches its element of dx, in the order of r and s. So there
# are no atomics, the sum has one order, and padding takes no part: where a tap lies on padding, dcol is not
# read.
from numba import cuda
from pyconv.kernels.common.index_numba import input_at, output_at, place


def im2col(Value):
    @cuda.jit
    def kernel(problem, channels_last, x, col):
        element = cuda.grid(1)
        if element >= x.shape[0] * problem.c * problem.p * problem.q:
            return
        n, c, p, q = place(element, problem.c, problem.p, problem.q, channels_last)
        group = c // problem.group_c
        for r in range(problem.r):
            h = input_at(p, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.h)
            for s in range(problem.s):
                w = input_at(q, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.w)
                value = Value(0)
                if h >= 0 and w >= 0:
                    value = Value(x[n, c, h, w])
                col[n, group, c % problem.group_c, r, s, p, q] = value

    return kernel


def col2im(Sum):
    @cuda.jit
    def kernel(problem, channels_last, col, dx):
        element = cuda.grid(1)
        if element >= dx.shape[0] * problem.c * problem.h * problem.w:
            return
        n, c, h, w = place(element, problem.c, problem.h, problem.w, channels_last)
        group = c // problem.group_c
        sum = Sum(0)
        for r in range(problem.r):
            p = output_at(h, r, problem.stride_h, problem.pad_top, problem.dilation_h, problem.p)
            if p < 0:
                continue
            for s in range(problem.s):
                q = output_at(w, s, problem.stride_w, problem.pad_left, problem.dilation_w, problem.q)
                if q >= 0:
                    sum += Sum(col[n, group, c % problem.group_c, r, s, p, q])
        dx[n, c, h, w] = sum

    return kernel

"""Direct convolution with Numba on the CPU: wgrad, each tap of a filter a sum of scaled pixels.

    dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

For one filter k and tap (r, s), dw[k,:,r,s] is a row of channels: the sum of the pixels of x, which are such
rows, each scaled by the element of dy that it meets (``add_scaled_rows``). Pixels on the padding are left
out, not multiplied by zero. That row is a unit. In nchw x is turned to nhwc first, which costs one copy.

With groups, c runs over the channels of the group that filter k belongs to.
"""

import numpy as np
from numba import prange
from pyconv.kernels.common.numba_cpu import add_scaled_rows, flush, inside, kernel, strides_of, unit


@unit
def turn_row(row, problem, x, turned):
    """The row x[n,:,h,:] as turned[n,h,:,:]."""
    n, h = row // problem.h, row % problem.h
    x_n, x_c, x_h, x_w = strides_of(problem.nhwc, problem.c, problem.h, problem.w)
    for w in range(problem.w):
        for c in range(problem.c):
            turned[(row * problem.w + w) * problem.c + c] = x[n * x_n + c * x_c + h * x_h + w * x_w]


@unit
def wgrad_row(row, problem, turned, dy, dw):
    """The row dw[k,:,r,s]."""
    k, r, s = row // problem.s // problem.r, row // problem.s % problem.r, row % problem.s
    w_k, w_c, w_r, w_s = strides_of(problem.nhwc, problem.group_c, problem.r, problem.s)
    y_n, y_k, y_p, y_q = strides_of(problem.nhwc, problem.k, problem.p, problem.q)
    first_c = k // problem.group_k * problem.group_c
    first_h, first_w = r * problem.dilation_h - problem.pad_top, s * problem.dilation_w - problem.pad_left
    first_p, end_p = inside(first_h, problem.stride_h, problem.p, problem.h)
    first_q, end_q = inside(first_w, problem.stride_w, problem.q, problem.w)
    total, partial, products = np.zeros(problem.group_c, dw.dtype), np.zeros(problem.group_c, dw.dtype), 0
    for n in range(problem.n):
        for p in range(first_p, end_p):
            h, w = p * problem.stride_h + first_h, first_q * problem.stride_w + first_w
            pixel = ((n * problem.h + h) * problem.w + w) * problem.c + first_c
            element = n * y_n + k * y_k + p * y_p + first_q * y_q
            products = add_scaled_rows(
                total, partial, products, end_q - first_q,
                turned, pixel, problem.stride_w * problem.c, dy, element, y_q,
            )  # fmt: skip
    flush(total, partial)
    for c in range(problem.group_c):
        dw[k * w_k + c * w_c + r * w_r + s * w_s] = total[c]


@kernel
def wgrad(problem, x, dy, dw):
    turned = x
    if not problem.nhwc:
        turned = np.empty(x.size, x.dtype)
        for row in prange(problem.n * problem.h):
            turn_row(row, problem, x, turned)
    for row in prange(problem.k * problem.r * problem.s):
        wgrad_row(row, problem, turned, dy, dw)

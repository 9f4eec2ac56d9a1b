"""Direct convolution with Numba on the CPU: wgrad, the weights of one tap and channel a sum of scaled pixels.

    dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

For one channel c and tap (r, s), dw[:,c,r,s] is a row of filters: the sum of the pixels of dy, which are such
rows, each scaled by the element of x that it meets (``add_scaled_rows``). Pixels that meet the padding are
left out, not multiplied by zero. That row is a unit. In nchw dy is turned to nhwc first: one copy of it.

Rows run along k and not along c since a first layer has few channels. With groups, k runs over the filters of
the group that channel c belongs to.
"""

import numpy as np
from numba import prange
from pyconv.kernels.common.numba_cpu import add_scaled_rows, flush, inside, kernel, strides_of, unit


@unit
def turn_row(row, problem, dy, turned):
    """The row dy[n,:,p,:] as turned[n,p,:,:]."""
    n, p = row // problem.p, row % problem.p
    y_n, y_k, y_p, y_q = strides_of(problem.nhwc, problem.k, problem.p, problem.q)
    for q in range(problem.q):
        for k in range(problem.k):
            turned[(row * problem.q + q) * problem.k + k] = dy[n * y_n + k * y_k + p * y_p + q * y_q]


@unit
def wgrad_row(row, problem, x, turned, dw):
    """The row dw[:,c,r,s] of the channel ``channel`` of x, which is c of its group."""
    channel, r, s = row // problem.s // problem.r, row // problem.s % problem.r, row % problem.s
    group, c = channel // problem.group_c, channel % problem.group_c
    first_k = group * problem.group_k
    w_k, w_c, w_r, w_s = strides_of(problem.nhwc, problem.group_c, problem.r, problem.s)
    x_n, x_c, x_h, x_w = strides_of(problem.nhwc, problem.c, problem.h, problem.w)
    first_h, first_w = r * problem.dilation_h - problem.pad_top, s * problem.dilation_w - problem.pad_left
    p_first, p_end = inside(first_h, problem.stride_h, problem.p, problem.h)
    q_first, q_end = inside(first_w, problem.stride_w, problem.q, problem.w)
    total, partial, products = np.zeros(problem.group_k, dw.dtype), np.zeros(problem.group_k, dw.dtype), 0
    for n in range(problem.n):
        for p in range(p_first, p_end):
            h, w = p * problem.stride_h + first_h, q_first * problem.stride_w + first_w
            pixel = ((n * problem.p + p) * problem.q + q_first) * problem.k + first_k
            element = n * x_n + channel * x_c + h * x_h + w * x_w
            products = add_scaled_rows(
                total, partial, products, q_end - q_first,
                turned, pixel, problem.k, x, element, problem.stride_w * x_w,
            )  # fmt: skip
    flush(total, partial)
    for k in range(problem.group_k):
        dw[(first_k + k) * w_k + c * w_c + r * w_r + s * w_s] = total[k]


@kernel
def wgrad(problem, x, dy, dw):
    turned = dy
    if not problem.nhwc:
        turned = np.empty(dy.size, dy.dtype)
        for row in prange(problem.n * problem.p):
            turn_row(row, problem, dy, turned)
    for row in prange(problem.c * problem.r * problem.s):
        wgrad_row(row, problem, x, turned, dw)

"""Direct convolution with Numba on the CPU: fprop and dgrad, each pixel of the result a sum of scaled rows.

    fprop   y[n,k,p,q]  = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
    dgrad   dx[n,c,h,w] =           sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

fprop goes along the map: a pixel (p, q) of y meets the pixels (h, w) of x, one for each tap (r, s). dgrad
goes back: a pixel (h, w) of dx meets p = (h + pad_top - r*dilation_h) / stride_h, q alike, where the division
is exact. A tap on the padding is left out, not multiplied by zero.

A pixel of the result is a row of channels, and so are the weights of one tap and one channel of the other
tensor: turned[r,s,c,:] has the weights of all filters k in fprop, turned[r,s,k,:] those of all channels c in
dgrad. For each tap, the pixel adds those rows, scaled by the other tensor's pixel (``add_scaled_rows``). That
inner loop runs along channels in both layouts; they differ in where the pixels' channels lie in memory. A
unit is one row of pixels. The filters are turned once a call.

With groups, c and k run over the channels of one group, one group after the other.
"""

import numpy as np
from numba import prange
from pyconv.kernels.common.numba_cpu import add_scaled_rows, flush, kernel, strides_of, unit

# ---- fprop -----------------------------------------------------------------------------------------------


@unit
def filters_last(problem, w):
    """w[k,c,r,s] as turned[r,s,c,k]."""
    w_k, w_c, w_r, w_s = strides_of(problem.nhwc, problem.group_c, problem.r, problem.s)
    turned = np.empty(w.size, w.dtype)
    i = 0
    for r in range(problem.r):
        for s in range(problem.s):
            for c in range(problem.group_c):
                for k in range(problem.k):
                    turned[i] = w[k * w_k + c * w_c + r * w_r + s * w_s]
                    i += 1
    return turned


@unit
def fprop_row(row, problem, x, turned, bias, y):
    """The row of pixels y[n,:,p,:]."""
    n, p = row // problem.p, row % problem.p
    x_n, x_c, x_h, x_w = strides_of(problem.nhwc, problem.c, problem.h, problem.w)
    y_n, y_k, y_p, y_q = strides_of(problem.nhwc, problem.k, problem.p, problem.q)
    total, partial = np.zeros(problem.group_k, y.dtype), np.zeros(problem.group_k, y.dtype)
    for q in range(problem.q):
        for group in range(problem.groups):
            first_c, first_k = group * problem.group_c, group * problem.group_k
            total[:] = 0
            products = 0
            for r in range(problem.r):
                h = p * problem.stride_h - problem.pad_top + r * problem.dilation_h
                if h < 0 or h >= problem.h:
                    continue
                for s in range(problem.s):
                    w = q * problem.stride_w - problem.pad_left + s * problem.dilation_w
                    if w < 0 or w >= problem.w:
                        continue
                    weights = (r * problem.s + s) * problem.group_c * problem.k + first_k
                    pixel = n * x_n + first_c * x_c + h * x_h + w * x_w
                    products = add_scaled_rows(
                        total, partial, products, problem.group_c,
                        turned, weights, problem.k, x, pixel, x_c,
                    )  # fmt: skip
            flush(total, partial)
            for k in range(problem.group_k):
                value = total[k] + bias[first_k + k] if bias.size > 0 else total[k]
                y[n * y_n + (first_k + k) * y_k + p * y_p + q * y_q] = value


@kernel
def fprop(problem, x, w, bias, y):
    turned = filters_last(problem, w)
    for row in prange(problem.n * problem.p):
        fprop_row(row, problem, x, turned, bias, y)


# ---- dgrad -----------------------------------------------------------------------------------------------


@unit
def channels_last(problem, w):
    """w[k,c,r,s] as turned[r,s,k,c]."""
    w_k, w_c, w_r, w_s = strides_of(problem.nhwc, problem.group_c, problem.r, problem.s)
    turned = np.empty(w.size, w.dtype)
    i = 0
    for r in range(problem.r):
        for s in range(problem.s):
            for k in range(problem.k):
                for c in range(problem.group_c):
                    turned[i] = w[k * w_k + c * w_c + r * w_r + s * w_s]
                    i += 1
    return turned


@unit
def dgrad_row(row, problem, dy, turned, dx):
    """The row of pixels dx[n,:,h,:]."""
    n, h = row // problem.h, row % problem.h
    x_n, x_c, x_h, x_w = strides_of(problem.nhwc, problem.c, problem.h, problem.w)
    y_n, y_k, y_p, y_q = strides_of(problem.nhwc, problem.k, problem.p, problem.q)
    total, partial = np.zeros(problem.group_c, dx.dtype), np.zeros(problem.group_c, dx.dtype)
    for w in range(problem.w):
        for group in range(problem.groups):
            first_c, first_k = group * problem.group_c, group * problem.group_k
            total[:] = 0
            products = 0
            for r in range(problem.r):
                p, over = divmod(h + problem.pad_top - r * problem.dilation_h, problem.stride_h)
                if over != 0 or p < 0 or p >= problem.p:
                    continue
                for s in range(problem.s):
                    q, over = divmod(w + problem.pad_left - s * problem.dilation_w, problem.stride_w)
                    if over != 0 or q < 0 or q >= problem.q:
                        continue
                    weights = ((r * problem.s + s) * problem.k + first_k) * problem.group_c
                    pixel = n * y_n + first_k * y_k + p * y_p + q * y_q
                    products = add_scaled_rows(
                        total, partial, products, problem.group_k,
                        turned, weights, problem.group_c, dy, pixel, y_k,
                    )  # fmt: skip
            flush(total, partial)
            for c in range(problem.group_c):
                dx[n * x_n + (first_c + c) * x_c + h * x_h + w * x_w] = total[c]


@kernel
def dgrad(problem, dy, w, dx):
    turned = channels_last(problem, w)
    for row in prange(problem.n * problem.h):
        dgrad_row(row, problem, dy, turned, dx)

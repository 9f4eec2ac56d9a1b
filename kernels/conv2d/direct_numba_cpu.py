"""Direct convolution with Numba on the CPU: fprop and dgrad, each row of the result a sum of scaled rows.

    fprop   y[n,k,p,q]  = bias[k] + sum over c,r,s of  x[n,c,h,w] * w[k,c,r,s]
    dgrad   dx[n,c,h,w] =           sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

fprop goes along the map: a row p of y meets the rows h of x, one for each r. dgrad goes back: a row h
of dx meets the rows p = (h + pad_top - r*dilation_h) / stride_h of dy, where the division is exact. A tap on
the padding is left out, not multiplied by zero.

The inner loop (``add_scaled_rows``) runs along what is contiguous:

    nchw   A unit is one row along q (of y) or w (of dx). For each r and s it adds the rows of all channels of
           the other tensor, each scaled by one weight, where the two rows overlap.
    nhwc   A unit is one row of pixels, and a pixel is a row of channels. For each r and s it adds the rows of
           the filter, one for each channel of the other tensor, scaled by that tensor's pixel.

Start with ``fprop_row_nchw``; the others are the same sum turned round.
"""

import numpy as np
from numba import prange
from pyconv.kernels.common.numba_cpu import add_scaled_rows, flush, inside, kernel, unit

# ---- fprop, nchw ---------------------------------------------------------------------------------------


@unit
def fprop_row_nchw(row, problem, x, w, bias, y):
    """The row y[n,k,p,:]."""
    p = row % problem.p
    k = row // problem.p % problem.k
    n = row // problem.p // problem.k
    first_c = k // problem.group_k * problem.group_c  # the group's channels of x
    taps = problem.r * problem.s
    total, partial, products = np.zeros(problem.q, y.dtype), np.zeros(problem.q, y.dtype), 0
    for r in range(problem.r):
        h = p * problem.stride_h - problem.pad_top + r * problem.dilation_h
        if h < 0 or h >= problem.h:
            continue
        for s in range(problem.s):
            start = s * problem.dilation_w - problem.pad_left  # w of q = 0
            q, q_end = inside(start, problem.stride_w, problem.q, problem.w)
            x_row = ((n * problem.c + first_c) * problem.h + h) * problem.w
            products = add_scaled_rows(
                total, partial, products, q, 1, q_end - q, problem.group_c,
                x, x_row + start + q * problem.stride_w, problem.stride_w, problem.h * problem.w,
                w, (k * problem.group_c * problem.r + r) * problem.s + s, taps,
            )  # fmt: skip
    flush(total, partial)
    for q in range(problem.q):
        y[row * problem.q + q] = total[q] + bias[k] if bias.size > 0 else total[q]


@kernel
def fprop_nchw(problem, x, w, bias, y):
    for row in prange(problem.n * problem.k * problem.p):
        fprop_row_nchw(row, problem, x, w, bias, y)


# ---- fprop, nhwc ---------------------------------------------------------------------------------------


@unit
def filters_last(problem, w):
    """w[k,r,s,c] as [r,s,c,k], so that the weights of one channel for all filters are a row."""
    taps, channels = problem.r * problem.s, problem.group_c
    turned = np.empty(w.size, w.dtype)
    for k in range(problem.k):
        for tap_channel in range(taps * channels):
            turned[tap_channel * problem.k + k] = w[k * taps * channels + tap_channel]
    return turned


@unit
def fprop_row_nhwc(row, problem, x, turned, bias, y):
    """The row of pixels y[n,p,:,:]; each pixel, one group of filters after the other, is a row."""
    p, n = row % problem.p, row // problem.p
    total, partial = np.zeros(problem.group_k, y.dtype), np.zeros(problem.group_k, y.dtype)
    for q in range(problem.q):
        for group in range(problem.groups):
            total[:] = 0
            products = 0
            first_k, first_c = group * problem.group_k, group * problem.group_c
            for r in range(problem.r):
                h = p * problem.stride_h - problem.pad_top + r * problem.dilation_h
                if h < 0 or h >= problem.h:
                    continue
                for s in range(problem.s):
                    at = q * problem.stride_w - problem.pad_left + s * problem.dilation_w
                    if at < 0 or at >= problem.w:
                        continue
                    products = add_scaled_rows(
                        total, partial, products, 0, 1, problem.group_k, problem.group_c,
                        turned, (r * problem.s + s) * problem.group_c * problem.k + first_k, 1, problem.k,
                        x, ((n * problem.h + h) * problem.w + at) * problem.c + first_c, 1,
                    )  # fmt: skip
            flush(total, partial)
            pixel = (row * problem.q + q) * problem.k + first_k
            for k in range(problem.group_k):
                y[pixel + k] = total[k] + bias[first_k + k] if bias.size > 0 else total[k]


@kernel
def fprop_nhwc(problem, x, w, bias, y):
    turned = filters_last(problem, w)
    for row in prange(problem.n * problem.p):
        fprop_row_nhwc(row, problem, x, turned, bias, y)


# ---- dgrad, nchw ---------------------------------------------------------------------------------------


@unit
def dgrad_row_nchw(row, problem, dy, w, dx):
    """The row dx[n,c,h,:]. The weights of tap s go to every stride_w-th place of it."""
    h = row % problem.h
    c = row // problem.h % problem.c
    n = row // problem.h // problem.c
    first_k = c // problem.group_c * problem.group_k  # the group's filters
    filter_size = problem.group_c * problem.r * problem.s
    total, partial, products = np.zeros(problem.w, dx.dtype), np.zeros(problem.w, dx.dtype), 0
    for r in range(problem.r):
        below = h + problem.pad_top - r * problem.dilation_h
        p = below // problem.stride_h
        if below % problem.stride_h != 0 or p < 0 or p >= problem.p:
            continue
        for s in range(problem.s):
            start = s * problem.dilation_w - problem.pad_left  # w of q = 0
            q, q_end = inside(start, problem.stride_w, problem.q, problem.w)
            products = add_scaled_rows(
                total, partial, products,
                start + q * problem.stride_w, problem.stride_w, q_end - q, problem.group_k,
                dy, ((n * problem.k + first_k) * problem.p + p) * problem.q + q, 1, problem.p * problem.q,
                w, first_k * filter_size + (c % problem.group_c * problem.r + r) * problem.s + s, filter_size,
            )  # fmt: skip
    flush(total, partial)
    for i in range(problem.w):
        dx[row * problem.w + i] = total[i]


@kernel
def dgrad_nchw(problem, dy, w, dx):
    for row in prange(problem.n * problem.c * problem.h):
        dgrad_row_nchw(row, problem, dy, w, dx)


# ---- dgrad, nhwc ---------------------------------------------------------------------------------------


@unit
def dgrad_row_nhwc(row, problem, dy, w, dx):
    """The row of pixels dx[n,h,:,:]; the weights w[k,r,s,:] of one filter and tap are a row already."""
    h, n = row % problem.h, row // problem.h
    taps = problem.r * problem.s
    total, partial = np.zeros(problem.group_c, dx.dtype), np.zeros(problem.group_c, dx.dtype)
    for at in range(problem.w):
        for group in range(problem.groups):
            total[:] = 0
            products = 0
            first_k, first_c = group * problem.group_k, group * problem.group_c
            for r in range(problem.r):
                below = h + problem.pad_top - r * problem.dilation_h
                p = below // problem.stride_h
                if below % problem.stride_h != 0 or p < 0 or p >= problem.p:
                    continue
                for s in range(problem.s):
                    right = at + problem.pad_left - s * problem.dilation_w
                    q = right // problem.stride_w
                    if right % problem.stride_w != 0 or q < 0 or q >= problem.q:
                        continue
                    products = add_scaled_rows(
                        total, partial, products, 0, 1, problem.group_c, problem.group_k,
                        w, (first_k * taps + r * problem.s + s) * problem.group_c, 1, taps * problem.group_c,
                        dy, ((n * problem.p + p) * problem.q + q) * problem.k + first_k, 1,
                    )  # fmt: skip
            flush(total, partial)
            pixel = (row * problem.w + at) * problem.c + first_c
            for c in range(problem.group_c):
                dx[pixel + c] = total[c]


@kernel
def dgrad_nhwc(problem, dy, w, dx):
    for row in prange(problem.n * problem.h):
        dgrad_row_nhwc(row, problem, dy, w, dx)

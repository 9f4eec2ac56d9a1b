"""Direct convolution with Numba on the CPU: wgrad.

    dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

Pixels whose x lies on the padding are left out, not multiplied by zero.

    nchw   A unit is one filter's plane dw[k,c,:,:]. A weight is the sum of a row of lanes, one for each q:
           for every row p of every image, the lanes add the products of a row of dy and the row of x that it
           meets.
    nhwc   A unit is one row dw[k,r,s,:]: it adds the pixels of x, which are rows of channels, each scaled by
           the element of dy that it meets (``add_scaled_rows``, as in fprop).
"""

import numpy as np
from numba import prange, uintp
from pyconv.kernels.common.numba_cpu import CHAIN, add_scaled_rows, flush, inside, kernel, sum_of, unit

# ---- nchw ----------------------------------------------------------------------------------------------


@unit
def add_products(total, partial, products, place, count, terms, dy, dy_at, dy_pitch, x, x_at, step, x_pitch):
    """Adds the products of ``terms`` rows of dy and x, element by element, to a part of the lanes::

        lane[place + i] += dy[dy_at + t*dy_pitch + i] * x[x_at + t*x_pitch + i*step]

    for ``i < count`` and ``t < terms``, four rows at a time as in ``add_scaled_rows``, which see for
    ``products``.
    """
    size, first, step_of_x = uintp(count), uintp(place), uintp(step)
    next_dy, next_x = uintp(dy_pitch), uintp(x_pitch)
    t = 0
    while t < terms:
        a0, b0 = uintp(dy_at + t * dy_pitch), uintp(x_at + t * x_pitch)
        if t + 4 <= terms and step == 1:
            a1, a2, a3 = a0 + next_dy, a0 + next_dy * uintp(2), a0 + next_dy * uintp(3)
            b1, b2, b3 = b0 + next_x, b0 + next_x * uintp(2), b0 + next_x * uintp(3)
            for i in range(size):
                acc = partial[first + i] + dy[a0 + i] * x[b0 + i] + dy[a1 + i] * x[b1 + i]
                partial[first + i] = acc + dy[a2 + i] * x[b2 + i] + dy[a3 + i] * x[b3 + i]
            t, products = t + 4, products + 4
        else:
            for i in range(size):
                partial[first + i] += dy[a0 + i] * x[b0 + i * step_of_x]
            t, products = t + 1, products + 1
        if products >= CHAIN:
            flush(total, partial)
            products = 0
    return products


@unit
def wgrad_plane_nchw(plane, problem, x, dy, dw):
    """The plane dw[k,c,:,:] of one filter and channel."""
    c, k = plane % problem.group_c, plane // problem.group_c
    channel = k // problem.group_k * problem.group_c + c  # of x
    total, partial = np.zeros(problem.q, dw.dtype), np.zeros(problem.q, dw.dtype)
    for r in range(problem.r):
        below = r * problem.dilation_h - problem.pad_top  # h of p = 0
        p, p_end = inside(below, problem.stride_h, problem.p, problem.h)
        h = p * problem.stride_h + below
        for s in range(problem.s):
            start = s * problem.dilation_w - problem.pad_left  # w of q = 0
            q, q_end = inside(start, problem.stride_w, problem.q, problem.w)
            total[:] = 0
            products = 0
            for n in range(problem.n):
                x_row = ((n * problem.c + channel) * problem.h + h) * problem.w
                dy_row = ((n * problem.k + k) * problem.p + p) * problem.q
                products = add_products(
                    total, partial, products, q, q_end - q, p_end - p, dy, dy_row + q, problem.q,
                    x, x_row + start + q * problem.stride_w, problem.stride_w, problem.stride_h * problem.w,
                )  # fmt: skip
            flush(total, partial)
            dw[(plane * problem.r + r) * problem.s + s] = sum_of(total) if problem.q > 0 else 0


@kernel
def wgrad_nchw(problem, x, dy, dw):
    for plane in prange(problem.k * problem.group_c):
        wgrad_plane_nchw(plane, problem, x, dy, dw)


# ---- nhwc ----------------------------------------------------------------------------------------------


@unit
def wgrad_row_nhwc(row, problem, x, dy, dw):
    """The row dw[k,r,s,:] of one filter and tap."""
    s = row % problem.s
    r = row // problem.s % problem.r
    k = row // problem.s // problem.r
    first_c = k // problem.group_k * problem.group_c  # the group's channels of x
    total, partial, products = np.zeros(problem.group_c, dw.dtype), np.zeros(problem.group_c, dw.dtype), 0
    below = r * problem.dilation_h - problem.pad_top  # h of p = 0
    start = s * problem.dilation_w - problem.pad_left  # w of q = 0
    first_p, end_p = inside(below, problem.stride_h, problem.p, problem.h)
    q, q_end = inside(start, problem.stride_w, problem.q, problem.w)
    for n in range(problem.n):
        for p in range(first_p, end_p):
            h, at = p * problem.stride_h + below, q * problem.stride_w + start
            products = add_scaled_rows(
                total, partial, products, 0, 1, problem.group_c, q_end - q,
                x, ((n * problem.h + h) * problem.w + at) * problem.c + first_c,
                1, problem.stride_w * problem.c,
                dy, ((n * problem.p + p) * problem.q + q) * problem.k + k, problem.k,
            )  # fmt: skip
    flush(total, partial)
    for c in range(problem.group_c):
        dw[row * problem.group_c + c] = total[c]


@kernel
def wgrad_nhwc(problem, x, dy, dw):
    for row in prange(problem.k * problem.r * problem.s):
        wgrad_row_nhwc(row, problem, x, dy, dw)

"""Max-pooling with Numba on the CPU: fprop, and fprop_argmax.

    y[n,c,p,q]      = max over r,s of x[n,c,h,w]
    argmax[n,c,p,q] = h*W + w of that element

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

A window is walked in row-major order. torch's rule: a later element wins if it is larger or NaN, so the first
of equal elements stays, and of several NaNs the last. A window that covers no element gives -inf, and -1.

One code serves both layouts. It works on images of ``channels`` values a pixel: nhwc has n images of c
channels, nchw n*c images of one. A unit is one row p of windows of one image; the inner loop runs along the
channels.
"""

import numpy as np
from numba import prange
from pyconv.kernels.common.numba_cpu import inside, kernel, unit


@unit
def fprop_row(row, problem, x, y, argmax):
    """The windows of one row of one image. ``argmax`` may be empty: then the maxima alone are kept."""
    channels = problem.c if problem.nhwc else 1
    image, p = row // problem.p, row % problem.p
    top = p * problem.stride_h - problem.pad_top
    first_r, end_r = inside(top, problem.dilation_h, problem.r, problem.h)
    for q in range(problem.q):
        left = q * problem.stride_w - problem.pad_left
        first_s, end_s = inside(left, problem.dilation_w, problem.s, problem.w)
        window = (row * problem.q + q) * channels
        covers_nothing = first_r == end_r or first_s == end_s
        for channel in range(channels):
            best, best_place = y.dtype.type(-np.inf), -1
            if not covers_nothing:
                best_place = (
                    (top + first_r * problem.dilation_h) * problem.w + left + first_s * problem.dilation_w
                )
                best = x[(image * problem.h * problem.w + best_place) * channels + channel]
            for r in range(first_r, end_r):
                for s in range(first_s, end_s):
                    place = (top + r * problem.dilation_h) * problem.w + left + s * problem.dilation_w
                    value = x[(image * problem.h * problem.w + place) * channels + channel]
                    if value > best or value != value:
                        best, best_place = value, place
            y[window + channel] = best
            if argmax.size > 0:
                argmax[window + channel] = best_place


@kernel
def fprop(problem, x, y):
    nowhere = np.empty(0, np.int32)
    for row in prange(problem.images * problem.p):
        fprop_row(row, problem, x, y, nowhere)


@kernel
def fprop_argmax(problem, x, y, argmax):
    for row in prange(problem.images * problem.p):
        fprop_row(row, problem, x, y, argmax)

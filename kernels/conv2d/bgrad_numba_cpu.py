"""Bias gradient with Numba on the CPU.

db[k] = sum over n,p,q of dy[n,k,p,q]

nchw   A unit is one filter. Its planes are cut into rows of 64 elements, which are added up element by
       element; at the end the row is summed.
nhwc   A unit is 64 filters side by side. Each pixel has a row of them.
"""

import numpy as np
from numba import prange, uintp
from pyconv.kernels.common.numba_cpu import CHAIN, flush, kernel, sum_of, unit

#: Elements of a row: eight AVX2 vectors of float32, enough to hide the latency of an addition.
LANES = 64


@unit
def add_row(partial, count, dy, at):
    """``partial[i] += dy[at + i]`` for ``i < count``."""
    first = uintp(at)
    for i in range(uintp(count)):
        partial[i] += dy[first + i]


@unit
def bgrad_filter_nchw(k, problem, dy, db):
    """The element db[k]."""
    plane = problem.p * problem.q
    total, partial, rows = np.zeros(LANES, db.dtype), np.zeros(LANES, db.dtype), 0
    for n in range(problem.n):
        for begin in range(0, plane, LANES):
            add_row(partial, min(LANES, plane - begin), dy, (n * problem.k + k) * plane + begin)
            rows += 1
            if rows == CHAIN:
                flush(total, partial)
                rows = 0
    flush(total, partial)
    db[k] = sum_of(total)


@unit
def bgrad_filters_nhwc(block, problem, dy, db):
    """The elements db[k] of one block of filters."""
    k = block * LANES
    count = min(LANES, problem.k - k)
    total, partial, rows = np.zeros(count, db.dtype), np.zeros(count, db.dtype), 0
    for pixel in range(problem.n * problem.p * problem.q):
        add_row(partial, count, dy, pixel * problem.k + k)
        rows += 1
        if rows == CHAIN:
            flush(total, partial)
            rows = 0
    flush(total, partial)
    for i in range(count):
        db[k + i] = total[i]


@kernel
def bgrad(problem, dy, db):
    if problem.nhwc:
        for block in prange((problem.k + LANES - 1) // LANES):
            bgrad_filters_nhwc(block, problem, dy, db)
    else:
        for k in prange(problem.k):
            bgrad_filter_nchw(k, problem, dy, db)

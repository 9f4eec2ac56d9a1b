"""How the Numba kernels for the CPU are compiled, and the inner loop of convolution.

A kernel file has two kinds of functions. What is decorated with ``@unit`` computes one piece of the result, a
row of it as a rule, on one thread. What is decorated with ``@kernel``, and named after a pass, deals the
units out to the threads, and is what the backend calls::

    @kernel
    def fprop(problem, x, w, bias, y):
        turned = filters_last(problem, w)
        for row in prange(problem.n * problem.p):
            fprop_row(row, problem, x, turned, bias, y)

Units and the order of every sum come from the problem, so no bit depends on the number of threads.

``problem`` is a named tuple of the descriptor's integers, with ``p``, ``q``, and ``nhwc``, which is 1 in that
layout and 0 in nchw. Arrays are flat, in the order of memory; ``strides_of`` says where an element is.

A sum is kept in two rows. Products are added to ``partial``; after ``CHAIN`` of them it is added to ``total``
and begins anew. The rounding error of a sum grows with the length of its chains of additions.
"""

from typing import Any, NamedTuple

import numba
from numba import uintp

#: Most products in one chain. In float32, 128 keep the error near that of torch's kernels.
CHAIN = 128

# "contract": a*b + c is one FMA where the processor has it. No other licence is given: NaN, infinities and
# the order of sums are part of what the kernels promise. error_model: no check for divisions by zero, which
# there are none of. nogil: other Python threads go on meanwhile.
_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}

#: Code of one thread. It is called by kernels only, so it needs no way in from Python.
unit = numba.njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)


class Compiled(NamedTuple):
    """A kernel twice: with its ``prange`` on Numba's threads, and as a plain loop on the calling thread."""

    parallel: Any
    serial: Any


def kernel(function: Any) -> Compiled:
    """Decorates a kernel. Either form is compiled when it is first called with a dtype."""
    return Compiled(numba.njit(parallel=True, **_OPTIONS)(function), numba.njit(**_OPTIONS)(function))


# ---- Places ----------------------------------------------------------------------------------------------


@unit
def strides_of(nhwc, channels, height, width):
    """The distances, in elements, between neighbours along a tensor's images, channels, rows and columns."""
    if nhwc:
        return channels * height * width, 1, width * channels, channels
    return channels * height * width, height * width, width, 1


@unit
def inside(start, step, count, extent):
    """The range ``[first, end)`` of those ``i`` in ``[0, count)`` with ``0 <= start + i*step < extent``."""
    first = 0 if start >= 0 else (-start + step - 1) // step
    end = 0 if start >= extent else (extent - start + step - 1) // step
    end = min(end, count)
    return min(first, end), end


# ---- Inner loops -----------------------------------------------------------------------------------------
#
# LLVM makes vectors of the loops over i, since the elements of a row are sums apart from each other. Indices
# are unsigned there: a signed one would be checked for Python's meaning of negative indices at every access.


@unit
def flush(total, partial):
    """``total += partial``, and ``partial`` begins anew."""
    for i in range(uintp(total.size)):
        total[i] += partial[i]
        partial[i] = 0


@unit
def add_scaled_rows(total, partial, products, terms, rows, at, pitch, scales, scale_at, scale_pitch):
    """Adds ``terms`` rows, each scaled, to the sums: ``row[t]`` is as long as ``partial``, and

        sum[i] += scales[scale_at + t*scale_pitch] * rows[at + t*pitch + i]    for t < terms

    Four rows at a time read and write the sum once for four products.

    Args:
        products: How many are in the chain of ``partial`` already.

    Returns:
        How many are in it now.
    """
    length, next_row = uintp(partial.size), uintp(pitch)
    t = 0
    while t < terms:
        row, scale = uintp(at + t * pitch), scale_at + t * scale_pitch
        a0 = scales[scale]
        if t + 4 <= terms:
            a1, a2 = scales[scale + scale_pitch], scales[scale + 2 * scale_pitch]
            a3 = scales[scale + 3 * scale_pitch]
            row1, row2, row3 = row + next_row, row + next_row * uintp(2), row + next_row * uintp(3)
            for i in range(length):
                sum_i = partial[i] + a0 * rows[row + i] + a1 * rows[row1 + i]
                partial[i] = sum_i + a2 * rows[row2 + i] + a3 * rows[row3 + i]
            t, products = t + 4, products + 4
        else:
            for i in range(length):
                partial[i] += a0 * rows[row + i]
            t, products = t + 1, products + 1
        if products >= CHAIN:
            flush(total, partial)
            products = 0
    return products


@unit
def sum_of(lanes):
    """The sum of a row's elements, by halves; the row is used up."""
    count = lanes.size
    while count > 1:
        half = (count + 1) // 2
        for i in range(uintp(count - half)):
            lanes[i] += lanes[uintp(half) + i]
        count = half
    return lanes[0]

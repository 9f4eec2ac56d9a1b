"""How the Numba kernels for the CPU are compiled, and the inner loops that they share.

A kernel file has two kinds of functions. What is decorated with ``@unit`` computes one piece of the result, a
row of it as a rule, on one thread. What is decorated with ``@kernel`` deals the units out to the threads, and
is what the backend calls::

    @kernel
    def fprop_nchw(problem, x, w, bias, y):
        for row in prange(problem.n * problem.k * problem.p):
            fprop_row_nchw(row, problem, x, w, bias, y)

Units and the order of every sum come from the problem, so no bit depends on the number of threads.

``problem`` is a named tuple of the descriptor's integers, with ``p``, ``q``, ``group_c`` and ``group_k``.
Arrays are flat: the element ``[n, c, h, w]`` of ``x`` is ``x[((n*C + c)*H + h)*W + w]`` in nchw and
``x[((n*H + h)*W + w)*C + c]`` in nhwc.

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


# ---- Ranges ----------------------------------------------------------------------------------------------


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
def add_scaled_rows(
    total, partial, products, place, place_step, count, terms,
    rows, at, step, pitch, weights, weight_at, weight_pitch,
):  # fmt: skip
    """Adds ``terms`` rows, each scaled by a weight, to a part of the sums. Convolution is made of this::

        sum[place + i*place_step] += weights[weight_at + t*weight_pitch] * rows[at + t*pitch + i*step]

    for ``i < count`` and ``t < terms``. Four rows at a time read and write the sum once for four products.

    Args:
        products: How many are in the chain of ``partial`` already.

    Returns:
        How many are in it now.
    """
    size, first, step_of_sum = uintp(count), uintp(place), uintp(place_step)
    step_of_row, next_row = uintp(step), uintp(pitch)
    unit_steps = place_step == 1 and step == 1
    t = 0
    while t < terms:
        row, weight = uintp(at + t * pitch), weight_at + t * weight_pitch
        if t + 4 <= terms:
            row1, row2, row3 = row + next_row, row + next_row * uintp(2), row + next_row * uintp(3)
            w0, w1 = weights[weight], weights[weight + weight_pitch]
            w2, w3 = weights[weight + 2 * weight_pitch], weights[weight + 3 * weight_pitch]
            if unit_steps:
                for i in range(size):
                    acc = partial[first + i] + w0 * rows[row + i] + w1 * rows[row1 + i]
                    partial[first + i] = acc + w2 * rows[row2 + i] + w3 * rows[row3 + i]
            else:
                for i in range(size):
                    j, to = i * step_of_row, first + i * step_of_sum
                    acc = partial[to] + w0 * rows[row + j] + w1 * rows[row1 + j]
                    partial[to] = acc + w2 * rows[row2 + j] + w3 * rows[row3 + j]
            t, products = t + 4, products + 4
        else:
            w0 = weights[weight]
            if unit_steps:
                for i in range(size):
                    partial[first + i] += w0 * rows[row + i]
            else:
                for i in range(size):
                    partial[first + i * step_of_sum] += w0 * rows[row + i * step_of_row]
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

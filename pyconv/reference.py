"""The definition of every pass, as plain loops over the taps of the filter or window.

The tests judge every kernel by these functions. They are the equations and nothing else: no torch, no
layout (arrays are indexed ``[n, c, h, w]`` whatever their strides), every size from the descriptor, and sums
in the precision that the caller asks for (``np.longdouble`` judges float64).

    y[n,k,p,q]  = bias[k] + sum over c,r,s of x[n,c,h,w] * w[k,c,r,s]        fprop
    dx[n,c,h,w] = sum over k,r,s of dy[n,k,p,q] * w[k,c,r,s]                 dgrad
    dw[k,c,r,s] = sum over n,p,q of x[n,c,h,w] * dy[n,k,p,q]                 wgrad
    db[k]       = sum over n,p,q of dy[n,k,p,q]                              bgrad

    with h = p*stride_h - pad_top + r*dilation_h  and  w = q*stride_w - pad_left + s*dilation_w

Only places inside the image enter a sum, so a NaN or an infinity reaches exactly the results whose sum
holds it. ``padding_multiplied=True`` is the other convention, of kernels that multiply zeros for the padding,
where an infinite element that meets padding gives NaN.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyconv.problem import Conv2dProblem, Pool2dProblem, Problem

Array = npt.NDArray[Any]


def _inside(outputs: int, extent: int, stride: int, pad: int, offset: int) -> tuple[slice, slice]:
    """The outputs ``p`` whose place ``p*stride - pad + offset`` is in ``[0, extent)``, and those places."""
    first = max(0, -((offset - pad) // stride))  # the least p with p*stride >= pad - offset
    last = min(outputs - 1, (extent - 1 + pad - offset) // stride)
    count = max(0, last - first + 1)
    start = first * stride - pad + offset if count else 0
    return slice(first, first + count), slice(start, start + count * stride, stride)


def _taps(problem: Problem) -> Iterator[tuple[int, int, tuple[slice, slice], tuple[slice, slice]]]:
    """Each tap, in row-major order: ``r, s``, the outputs ``[p, q]`` and the places ``[h, w]`` it joins."""
    for r in range(problem.r):
        ps, hs = _inside(problem.p, problem.h, problem.stride_h, problem.pad_top, r * problem.dilation_h)
        for s in range(problem.s):
            qs, ws = _inside(problem.q, problem.w, problem.stride_w, problem.pad_left, s * problem.dilation_w)
            yield r, s, (ps, qs), (hs, ws)


# ---- conv2d --------------------------------------------------------------------------------------------
# Channels are split as [g, c/groups] and filters as [g, k/groups]; a group sees nothing of the others.


def _split(problem: Conv2dProblem, dtype: npt.DTypeLike, **arrays: Array | None) -> list[Any]:
    shapes = {
        "x": (problem.n, problem.groups, problem.group_c, problem.h, problem.w),
        "dy": (problem.n, problem.groups, problem.group_k, problem.p, problem.q),
        "w": (problem.groups, problem.group_k, problem.group_c, problem.r, problem.s),
    }
    return [np.asarray(array, dtype).reshape(shapes[name]) for name, array in arrays.items()]


def _padding_as_data(problem: Conv2dProblem, x: Array) -> tuple[Conv2dProblem, Array]:
    top, bottom, left, right = problem.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    unpadded = replace(problem, h=x.shape[2], w=x.shape[3], pad_top=0, pad_bottom=0, pad_left=0, pad_right=0)
    return unpadded, x


def conv2d_fprop(
    problem: Conv2dProblem,
    x: Array,
    w: Array,
    bias: Array | None = None,
    dtype: npt.DTypeLike = np.float64,
    padding_multiplied: bool = False,
) -> Array:
    """``y`` from ``x``, ``w`` and ``bias``, summed in ``dtype``."""
    if padding_multiplied:
        problem, x = _padding_as_data(problem, x)
    x, w = _split(problem, dtype, x=x, w=w)
    y = np.zeros((problem.n, problem.groups, problem.group_k, problem.p, problem.q), dtype)
    for r, s, (ps, qs), (hs, ws) in _taps(problem):
        y[..., ps, qs] += np.einsum("ngchw,gkc->ngkhw", x[..., hs, ws], w[..., r, s])
    y = y.reshape(problem.y_shape)
    if bias is not None:
        y += np.asarray(bias, dtype)[:, None, None]
    return y


def conv2d_dgrad(
    problem: Conv2dProblem,
    dy: Array,
    w: Array,
    dtype: npt.DTypeLike = np.float64,
    padding_multiplied: bool = False,
) -> Array:
    """``dx`` from ``dy`` and ``w``, summed in ``dtype``."""
    dy, w = _split(problem, dtype, dy=dy, w=w)
    dx = np.zeros((problem.n, problem.groups, problem.group_c, problem.h, problem.w), dtype)
    for r, s, (ps, qs), (hs, ws) in _taps(problem):
        dx[..., hs, ws] += np.einsum("ngkpq,gkc->ngcpq", dy[..., ps, qs], w[..., r, s])
    if padding_multiplied:  # every tap meets every dx, with a zero where there is no dy
        dx += (0 * w).sum((1, 3, 4), dtype=dtype)[:, :, None, None]
    return dx.reshape(problem.x_shape)


def conv2d_wgrad(
    problem: Conv2dProblem,
    x: Array,
    dy: Array,
    dtype: npt.DTypeLike = np.float64,
    padding_multiplied: bool = False,
) -> Array:
    """``dw`` from ``x`` and ``dy``, summed in ``dtype``."""
    if padding_multiplied:
        problem, x = _padding_as_data(problem, x)
    x, dy = _split(problem, dtype, x=x, dy=dy)
    dw = np.zeros((problem.groups, problem.group_k, problem.group_c, problem.r, problem.s), dtype)
    for r, s, (ps, qs), (hs, ws) in _taps(problem):
        dw[..., r, s] = np.einsum("ngchw,ngkhw->gkc", x[..., hs, ws], dy[..., ps, qs])
    return dw.reshape(problem.w_shape)


def conv2d_bgrad(problem: Conv2dProblem, dy: Array, dtype: npt.DTypeLike = np.float64) -> Array:
    """``db`` from ``dy``, summed in ``dtype``."""
    return np.asarray(dy, dtype).sum((0, 2, 3))  # type: ignore[no-any-return]


# ---- maxpool2d -----------------------------------------------------------------------------------------


def _maxpool2d(problem: Pool2dProblem, x: Array) -> tuple[Array, Array]:
    """``y`` and the taps ``r * s_extent + s`` it came from, -1 where a window covers nothing."""
    x = np.asarray(x)
    y = np.full(problem.y_shape, -np.inf, x.dtype)
    taps = np.full(problem.y_shape, -1, np.int64)
    for r, s, (ps, qs), (hs, ws) in _taps(problem):
        value, best, tap = x[..., hs, ws], y[..., ps, qs], taps[..., ps, qs]
        better = (value > best) | np.isnan(value) | (tap < 0)
        y[..., ps, qs] = np.where(better, value, best)
        taps[..., ps, qs] = np.where(better, r * problem.s + s, tap)
    return y, taps


def _places(problem: Pool2dProblem, taps: Array) -> Array:
    """The place ``h * w_extent + w`` of each tap, -1 for none."""
    r, s = np.divmod(taps, problem.s)
    h = np.arange(problem.p)[:, None] * problem.stride_h - problem.pad_top + r * problem.dilation_h
    w = np.arange(problem.q) * problem.stride_w - problem.pad_left + s * problem.dilation_w
    return np.where(taps < 0, -1, h * problem.w + w).astype(np.int32)


def maxpool2d_fprop_argmax(problem: Pool2dProblem, x: Array) -> tuple[Array, Array]:
    """``y`` and the places ``h * w_extent + w`` it came from, as torch breaks ties and treats NaN.

    The first of equal values wins, in row-major order; a NaN beats every number and every earlier NaN. A
    window that covers no place of the image gives ``-inf`` and ``-1``.
    """
    y, taps = _maxpool2d(problem, x)
    return y, _places(problem, taps)


def maxpool2d_fprop(problem: Pool2dProblem, x: Array) -> Array:
    """``y`` alone."""
    return maxpool2d_fprop_argmax(problem, x)[0]


def maxpool2d_dgrad(
    problem: Pool2dProblem, dy: Array, argmax: Array, dtype: npt.DTypeLike = np.float64
) -> Array:
    """``dx[n,c,argmax[n,c,p,q]] += dy[n,c,p,q]``, summed in ``dtype``; ``-1`` adds nowhere."""
    dx = np.zeros((problem.n, problem.c, problem.h * problem.w), dtype)
    n, c, p, q = np.nonzero(argmax >= 0)
    np.add.at(dx, (n, c, argmax[n, c, p, q]), np.asarray(dy, dtype)[n, c, p, q])
    return dx.reshape(problem.x_shape)


def maxpool2d_gather(problem: Pool2dProblem, x: Array, argmax: Array) -> Array:
    """``y[n,c,p,q] = x[n,c,argmax[n,c,p,q]]``; ``-1`` reads as 0."""
    x = np.asarray(x).reshape(problem.n, problem.c, problem.h * problem.w)
    y = np.zeros(problem.y_shape, x.dtype)
    n, c, p, q = np.nonzero(argmax >= 0)
    y[n, c, p, q] = x[n, c, argmax[n, c, p, q]]
    return y


# The same with an argmax of one byte: the tap of the window, 255 where it covers nothing.


def _places_of_bytes(problem: Pool2dProblem, argmax: Array) -> Array:
    return _places(problem, np.where(argmax == 255, -1, argmax.astype(np.int64)))


def maxpool2d_fprop_tap(problem: Pool2dProblem, x: Array) -> tuple[Array, Array]:
    """As :func:`maxpool2d_fprop_argmax`, for windows of at most 255 places."""
    y, taps = _maxpool2d(problem, x)
    return y, np.where(taps < 0, 255, taps).astype(np.uint8)


def maxpool2d_dgrad_tap(
    problem: Pool2dProblem, dy: Array, argmax: Array, dtype: npt.DTypeLike = np.float64
) -> Array:
    """As :func:`maxpool2d_dgrad`."""
    return maxpool2d_dgrad(problem, dy, _places_of_bytes(problem, argmax), dtype)


def maxpool2d_gather_tap(problem: Pool2dProblem, x: Array, argmax: Array) -> Array:
    """As :func:`maxpool2d_gather`."""
    return maxpool2d_gather(problem, x, _places_of_bytes(problem, argmax))

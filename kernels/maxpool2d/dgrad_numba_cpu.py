"""Max-pooling with Numba on the CPU: dgrad, the scatter, and gather, its transpose.

    dgrad    dx[n,c,argmax[n,c,p,q]] += dy[n,c,p,q],   dx zero elsewhere
    gather   y[n,c,p,q] = x[n,c,argmax[n,c,p,q]]

argmax is the place h*W + w within a plane. It may come from a caller: a place outside the plane, -1 among
them, adds nowhere in dgrad and reads as 0 in gather.

One code serves both layouts, as in ``fprop_numba_cpu.py``: images of ``channels`` values a pixel. Windows
overlap, so in dgrad a unit owns what it adds to: 16 channels of one image (or the one there is), and goes
through the windows in row-major order.
"""

from numba import prange
from pyconv.kernels.common.numba_cpu import kernel, unit

#: Channels of a unit of dgrad in nhwc: a cache line of float32, which no two threads then write to.
CHANNELS = 16


@unit
def dgrad_channels(index, problem, dy, argmax, dx):
    """Some channels of one image of dx."""
    channels = problem.c if problem.nhwc else 1
    blocks = (channels + CHANNELS - 1) // CHANNELS
    image, begin = index // blocks, index % blocks * CHANNELS
    end = min(begin + CHANNELS, channels)
    plane, windows = problem.h * problem.w, problem.p * problem.q
    for pixel in range(image * plane, (image + 1) * plane):
        for channel in range(begin, end):
            dx[pixel * channels + channel] = 0
    for window in range(image * windows, (image + 1) * windows):
        for channel in range(begin, end):
            place = argmax[window * channels + channel]
            if place >= 0 and place < plane:
                dx[(image * plane + place) * channels + channel] += dy[window * channels + channel]


@kernel
def dgrad(problem, dy, argmax, dx):
    channels = problem.c if problem.nhwc else 1
    for index in prange(problem.images * ((channels + CHANNELS - 1) // CHANNELS)):
        dgrad_channels(index, problem, dy, argmax, dx)


@unit
def gather_row(row, problem, x, argmax, y):
    """The windows of one row of one image."""
    channels = problem.c if problem.nhwc else 1
    image, plane = row // problem.p, problem.h * problem.w
    for window in range(row * problem.q, (row + 1) * problem.q):
        for channel in range(channels):
            place = argmax[window * channels + channel]
            inside_plane = place >= 0 and place < plane
            y[window * channels + channel] = (
                x[(image * plane + place) * channels + channel] if inside_plane else x.dtype.type(0)
            )


@kernel
def gather(problem, x, argmax, y):
    for row in prange(problem.images * problem.p):
        gather_row(row, problem, x, argmax, y)

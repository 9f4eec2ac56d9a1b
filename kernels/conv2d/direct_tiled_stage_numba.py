# What a block of direct_tiled_numba.py computes, and how it stages a patch and its filters. The twin of
# direct_tiled_stage.cuh, gather.cuh and patch.cuh, which explain the names.
from numba import cuda


@cuda.jit(device=True)
def fprop_axis(outputs, taps, pad):
    """One axis: out_origin, out_step, out_count, taps, tap_origin, tap_step, in_origin (``AxisClass``)."""
    return 0, 1, outputs, taps, 0, 1, -pad


@cuda.jit(device=True)
def dgrad_axis(outputs, taps, pad, stride, dilation, period, residue):
    """The same for the outputs of one residue of the stride, whose filter rows are a period apart."""
    class_taps = 0
    tap_origin = 0
    in_origin = 0
    for first in range(min(taps, period)):
        if (residue + pad - first * dilation) % stride == 0:
            class_taps = (taps - 1 - first) // period + 1
            tap_origin = first + (class_taps - 1) * period
            in_origin = (residue + pad - tap_origin * dilation) // stride
    # A class that no tap reaches has no taps, and is zero.
    return (
        residue,
        stride,
        (outputs - residue + stride - 1) // stride,
        class_taps,
        tap_origin,
        -period,
        in_origin,
    )


@cuda.jit(device=True)
def column_of(plan, u):
    """Where column ``u`` lies in its row of the patch: columns are kept apart by the stride's residue."""
    return u % plan.patch_column_step * plan.patch_column_pitch + u // plan.patch_column_step


@cuda.jit(device=True)
def source_of(plan, place):
    """Image, row and column, from the patch's first, of a place in it."""
    within_image = place % plan.patch_image_pitch
    within_row = within_image % plan.patch_row_pitch
    column = within_row % plan.patch_column_pitch * plan.patch_column_step
    column += within_row // plan.patch_column_pitch
    row = within_image // plan.patch_row_pitch
    return place // plan.patch_image_pitch, row * plan.patch_row_unit, column * plan.patch_column_unit


@cuda.jit(device=True)
def stage_patch(staged, begin, plan, input, image, channel, row, column, channels, lanes, zero, threads):
    """Copies ``channels`` channels of a patch, padding as zeros. It begins at (image, channel, row, column).

    ``lanes`` neighbouring threads read neighbouring channels of one pixel: 8 in nhwc, where they lie side by
    side; 1 in nchw, where neighbouring threads read neighbouring columns.
    """
    thread = cuda.threadIdx.x
    places = plan.patch_images * plan.patch_image_pitch
    for place in range(thread // lanes, places, threads // lanes):
        image_at, row_at, column_at = source_of(plan, place)
        n = image + image_at
        h = row + row_at
        w = column + column_at
        is_inside = n < input.shape[0] and 0 <= h < input.shape[2] and 0 <= w < input.shape[3]
        for c in range(thread % lanes, channels, lanes):
            value = zero
            if is_inside:
                value += input[n, channel + c, h, w]
            staged[begin + c * plan.patch_channel_pitch + place] = value

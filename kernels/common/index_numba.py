# Which element a thread has, and where a tap lies: what the kernels in Numba have in common.
#
#   h = p*stride_h - pad_top + r*dilation_h          (the same for w, with pad_left)
from numba import cuda


@cuda.jit(device=True)
def place(element, channels, rows, columns, channels_last):
    """The indices of an element by its number in memory: image (of a filter k), channel, row, column."""
    if channels_last:
        channel = element % channels
        element //= channels
    column = element % columns
    element //= columns
    row = element % rows
    element //= rows
    if not channels_last:
        channel = element % channels
        element //= channels
    return element, channel, row, column


@cuda.jit(device=True)
def input_at(output, tap, stride, pad, dilation, inputs):
    """The row of x that tap r of output row p reads, or -1 if it lies in the padding. Columns alike."""
    input = output * stride - pad + tap * dilation
    return input if 0 <= input < inputs else -1


@cuda.jit(device=True)
def output_at(input, tap, stride, pad, dilation, outputs):
    """The inverse: the output row whose tap r reads this row of x, or -1 if there is none."""
    scaled = input + pad - tap * dilation
    if scaled < 0 or scaled % stride != 0 or scaled // stride >= outputs:
        return -1
    return scaled // stride

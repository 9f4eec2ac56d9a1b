"""Direct convolution with Numba on the CPU: wgrad.

    dw[k,c,r,s] = sum over n,p,q of dy[n,k,p,q] * x[n,c,h,w]

    h = p*stride_h - pad_top + r*dilation_h,   w = q*stride_w - pad_left + s*dilation_w

Pixels whose x lies on the padding are left out, not multiplied by zero.

    nchw   A unit is one filter's plane dw[k,c,:,:]. A weight is the sum of a row of lanes, one for each q: for every
           row p of every image, the lanes add the products of a row of dy and the row of x that it meets.
    nhwc   A unit is one row dw[k,r,s,:]: it adds the pixels of x, which are rows of channels, each scaled by the
           element of dy that it meets (``add_scaled_rows``, as in fprop).
"""

from pyconv.kernels.common.numba_cpu import CHAIN, add_scaled_rows, flush, inside, kernel, np, prange, sum_of, uintp, unit

# ---- nchw ----------------------------------------------------------------------------------------------


@unit
def add_products(partial, place, count, dy, dy_at, x, x_at, step):
    """``partial[place + i] += dy[dy_at + i] * x[x_at + i*step]`` for ``i < count``."""
    first, from_dy, from_x, step_of_x = uintp(place), uintp(dy_at), uintp(x_at), uintp(step)
    if step == 1:
        for i in range(uintp(count)):
            partial[first + i] += dy[from_dy + i] * x[from_x + i]
    else:
        for i in range(uintp(count)):
            partial[first + i] += dy[from_dy + i] * x[from_x + i * step_of_x]


@unit
def wgrad_plane_nchw(plane, problem, x, dy, dw):
    """The plane dw[k,c,:,:] of one filter and channel."""
    c, k = plane % problem.group_c, plane // problem.group_c
    channel = k // problem.group_k * problem.group_c + c  # of x
    total, partial = np.zeros(problem.q, dw.dtype), np.zeros(problem.q, dw.dtype)
    for r in range(problem.r):
        below = r * problem.dilation_h - problem.pad_top  # h of p = 0
        first_p, end_p = inside(below, problem.stride_h, problem.p, problem.h)
        for s in range(problem.s):
            start = s * problem.dilation_w - problem.pad_left  # w of q = 0
            q, q_end = inside(start, problem.stride_w, problem.q, problem.w)
            total[:] = 0
            products = 0
            for n in range(problem.n):
                for p in range(first_p, end_p):
                    h = p * problem.stride_h + below
                    x_row = ((n * problem.c + channel) * problem.h + h) * problem.w
                    dy_row = ((n * problem.k + k) * problem.p + p) * problem.q
                    add_products(
                        partial, q, q_end - q, dy, dy_row + q,
                        x, x_row + start + q * problem.stride_w, problem.stride_w,
                    )  # fmt: skip
                    products += 1
                    if products == CHAIN:
                        flush(total, partial)
                        products = 0
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
                x, ((n * problem.h + h) * problem.w + at) * problem.c + first_c, 1, problem.stride_w * problem.c,
                dy, ((n * problem.p + p) * problem.q + q) * problem.k + k, problem.k,
            )  # fmt: skip
    flush(total, partial)
    for c in range(problem.group_c):
        dw[row * problem.group_c + c] = total[c]


@kernel
def wgrad_nhwc(problem, x, dy, dw):
    for row in prange(problem.k * problem.r * problem.s):
        wgrad_row_nhwc(row, problem, x, dy, dw)

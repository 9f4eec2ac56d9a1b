"""What the implicit GEMM kernels cannot do, and the problems that cross the edges of their tiles."""

from __future__ import annotations

from pyconv.kernels.conv2d.restrictions import indices_fit_int32

from pyconv.problem import Conv2dProblem, Problem

#: Places along one dimension of the product: tiles reach a little beyond the last of them.
MOST = 2**31 - 2**16


def restriction(problem: Problem) -> str | None:
    """Pixels, filter taps and the product's dimensions are counted in an ``int``; offsets are 64-bit."""
    assert isinstance(problem, Conv2dProblem)
    a = problem
    counts = {
        "n*h*w": a.n * a.h * a.w,
        "n*p*q": a.n * a.p * a.q,
        "r*s*k": a.r * a.s * a.k,
        "r*s*c": a.r * a.s * a.c,
    }
    name, most = max(counts.items(), key=lambda count: count[1])
    return f"{name} is {most} (takes fewer than 2^31)" if most > MOST else indices_fit_int32(problem)


#: Terms of a sum from which three products of tf32 are within the battery's bound, twice torch's own error.
#: They round operands by up to 2^-23 and truncate what they add: a relative error of 1.1e-7, measured on the
#: emulator, however many terms there are. The bound grows with the terms: it is 1.3e-7 for 4 of them, 1.8e-7
#: for 32.
LEAST_TERMS_OF_THREE = 32


def three_products(problem: Problem, pass_: str) -> str | None:
    """For float by three products of tf32."""
    assert isinstance(problem, Conv2dProblem)
    a = problem
    terms = {
        "fprop": a.group_c * a.r * a.s,
        "dgrad": a.group_k * a.r * a.s // (a.stride_h * a.stride_w),
        "wgrad": a.n * a.p * a.q,
    }[pass_]
    if 0 < terms < LEAST_TERMS_OF_THREE:
        return (
            f"sums of {terms} terms, in which its rounding would show (takes {LEAST_TERMS_OF_THREE} and more)"
        )
    return restriction(problem)


#: Taps that end within a tile of k, within a piece, and with it; pixels of several rows and images in a tile;
#: residue classes of unequal size and taps, some of none, and more than a launch takes; groups of a few
#: channels; channels that are read 8, 4, 2 and 1 at a time.
_GATHERED = (
    "conv2d n3c24h5w9 k40r3s3 st1 pd1",
    "conv2d n2c40h9w8 k24r3s3 st2 pd1",
    "conv2d n1c12h9w11 k20r3s3 st2x1 pd1 dl1x2",
    "conv2d n2c36h7w6 k72r2s3 st1 pd0,1,2,0 g2",
    "conv2d n1c70h6w7 k66r3s3 st3x2 pd2x1 dl2x1",
    "conv2d n1c8h21w19 k16r5s4 st9x3 pd2",
    "conv2d n1c64h9w9 k72r3s3 st1 pd2 dl2",
)
PROBLEMS = {
    "fprop": (*_GATHERED, "conv2d n1c300h4w5 k9r3s3 st1 pd1"),
    "dgrad": (*_GATHERED, "conv2d n1c9h4w5 k300r3s3 st1 pd1"),
    # One split and several, of which the last is short.
    "wgrad": (*_GATHERED, "conv2d n3c8h23w29 k16r3s3 st1 pd1", "conv2d n2c5h29w23 k7r3s3 st1 pd1"),
}

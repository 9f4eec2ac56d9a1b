"""The problems of the CUDA lines, for the emulator: few and small, but across every edge of a tile.

The emulator runs some fifty million multiplications a second, checks included, and compiles an instantiation
in about a second. In the default run a line therefore meets each problem once, in one of a few pairs of dtype
and layout that take turns (:func:`shares`); the exhaustive run has all of them. A line adds problems of its
own in its ``problems`` field, beside the numbers of its tiles.
"""

from __future__ import annotations

import zlib

from pyconv.problem import LAYOUTS, Problem, parse_problem
from pyconv.registry import Kernel, kernels

#: Tiles of CUDA kernels, in any dimension of an implicit GEMM.
TILES = (16, 32, 64, 128)

# A 1x1 convolution is a GEMM of (npq, k, c) in fprop, (nhw, c, k) in dgrad and (k, c, npq) in wgrad. These
# have every tile, one less and one more, in each of the three places, and no tile in two of them.
_GEMM_EDGES = [
    "conv2d n1c64h3w5 k127r1s1 st1 pd0",
    "conv2d n1c65h2w8 k129r1s1 st1 pd0",
    "conv2d n1c33h1w17 k128r1s1 st1 pd0",
    "conv2d n1c16h1w31 k63r1s1 st1 pd0",
    "conv2d n2c15h4w4 k65r1s1 st1 pd0",
    "conv2d n1c17h3w11 k64r1s1 st1 pd0",
    "conv2d n1c127h7w9 k17r1s1 st1 pd0",
    "conv2d n1c129h8w8 k31r1s1 st1 pd0",
    "conv2d n1c128h5w13 k33r1s1 st1 pd0",
    "conv2d n1c63h1w127 k32r1s1 st1 pd0",
    "conv2d n2c31h8w8 k15r1s1 st1 pd0",
    "conv2d n3c32h1w43 k16r1s1 st1 pd0",
]

CONV2D_CUDA = [
    *_GEMM_EDGES,
    # 3x3: output rows and columns around 8, 16, 32 and 64.
    "conv2d n2c5h7w15 k16r3s3 st1 pd1",
    "conv2d n1c16h8w16 k17r3s3 st1 pd1",
    "conv2d n1c17h9w17 k15r3s3 st1 pd1",
    "conv2d n1c8h15w31 k8r3s3 st1 pd1",
    "conv2d n1c7h16w32 k9r3s3 st1 pd1",
    "conv2d n1c9h17w33 k7r3s3 st1 pd1",
    "conv2d n1c4h3w63 k5r3s3 st1 pd1",
    "conv2d n1c5h2w64 k4r3s3 st1 pd1",
    "conv2d n1c3h1w65 k6r3s3 st1 pd1",
    # 3x3: channels and filters across 32 and 64, and a long sum over the image for wgrad.
    "conv2d n1c33h4w5 k65r3s3 st1 pd1",
    "conv2d n1c64h3w4 k32r3s3 st1 pd1",
    "conv2d n3c5h20w21 k6r3s3 st1 pd1",
    # First layers: three channels, 7x7 by two and 11x11 by four, over one tile and more.
    "conv2d n2c3h11w13 k8r7s7 st2 pd3",
    "conv2d n1c3h19w35 k17r7s7 st2 pd3",
    "conv2d n1c3h31w39 k16r7s7 st2 pd3",
    "conv2d n1c3h23w19 k6r11s11 st4 pd2",
    "conv2d n1c3h35w71 k9r11s11 st4 pd2",
    # Strides, dilation, padding per side; filters larger than the image.
    "conv2d n1c8h17w19 k16r3s3 st2 pd1",
    "conv2d n2c6h11w14 k8r1s1 st2 pd0",
    "conv2d n1c4h9w10 k5r2s2 st3 pd0",
    "conv2d n1c5h8w9 k6r5s5 st1 pd2",
    "conv2d n2c5h13w11 k9r3s5 st2x1 pd1,2,0,3",
    "conv2d n1c2h13w9 k3r3s2 st2x1 pd3x1 dl3x2",
    "conv2d n1c1h31w3 k2r5s1 st1 pd2x0",
    "conv2d n1c3h2w3 k4r5s5 st1 pd2",
    "conv2d n1c2h3w4 k3r2s2 st2 pd5,3,2,6",
    # Groups.
    "conv2d n1c4h9w15 k6r3s3 st1x2 pd2 dl2 g2",
    "conv2d n2c6h7w8 k9r3s3 st1 pd1 g3",
    "conv2d n1c32h4w5 k34r1s1 st1 pd0 g2",
    # Depthwise, with multipliers 1 and 2.
    "conv2d n1c7h9w7 k7r3s3 st1 pd2 dl2 g7",
    "conv2d n2c9h8w11 k9r3s3 st2 pd1 g9",
    "conv2d n1c3h4w3 k3r5s7 st1 pd1,3,3,4 g3",
    "conv2d n1c2h3w65 k2r3s3 st1x2 pd1 g2",
    "conv2d n1c5h8w9 k10r3s3 st1 pd1 g5",
    # One of everything; nothing of something: an empty sum is 0, an empty result is empty.
    "conv2d n1c1h1w1 k1r1s1 st1 pd0",
    "conv2d n0c3h5w5 k4r3s3 st1 pd1",
    "conv2d n2c0h5w5 k4r3s3 st1 pd1",
    "conv2d n2c3h5w5 k0r3s3 st1 pd1",
    "conv2d n0c4h5w5 k4r3s3 st1 pd1 g4",
]

#: For the lines of algorithm ``depthwise`` besides: a line that spends a tile on each group would take long.
CONV2D_DEPTHWISE_CUDA = [
    "conv2d n2c19h7w16 k19r3s3 st1 pd1 g19",
    "conv2d n1c33h8w14 k33r3s3 st2 pd1 g33",
    "conv2d n1c16h15w31 k16r5s5 st1 pd2 g16",
    "conv2d n1c32h9w17 k32r3s3 st1 pd1 g32",
    "conv2d n2c64h4w7 k64r3s3 st1 pd1 g64",
    "conv2d n1c8h14w13 k8r7s7 st1 pd3 g8",
    "conv2d n2c16h9w9 k32r5s5 st2 pd2 g16",
]

MAXPOOL2D_CUDA = [
    # Output columns and channels around every tile; whole vectors of channels, and a rest.
    *(
        f"maxpool2d n1c{c}h5w{2 * q} r2s2 st2 pd0"
        for c, q in ((127, 1), (128, 2), (129, 3), (33, 15), (32, 16), (31, 17), (17, 31), (16, 32), (15, 33))
    ),
    *(
        f"maxpool2d n1c{c}h4w{2 * q} r3s3 st2 pd1"
        for c, q in ((65, 7), (64, 8), (63, 9), (8, 63), (7, 64), (9, 65), (3, 127), (2, 128), (1, 129))
    ),
    "maxpool2d n2c5h33w31 r3s3 st1 pd1",
    "maxpool2d n3c8h16w18 r2s2 st2 pd0",
    # Windows that overlap or leave gaps, of one place or of the whole image, dilated, padded per side.
    "maxpool2d n3c7h11w13 r3s2 st1x2 pd1",
    "maxpool2d n1c4h11w12 r2s2 st5x3 pd0",
    "maxpool2d n1c16h6w6 r4s4 st1 pd2",
    "maxpool2d n2c5h7w5 r7s5 st1 pd0",
    "maxpool2d n1c3h6w9 r1s1 st2 pd0",
    "maxpool2d n1c3h11w9 r3s3 st1 pd1 dl2",
    "maxpool2d n1c3h8w9 r3s3 st2 pd0,1,0,1",
    "maxpool2d n1c4h6w15 r2s4 st1x2 pd1,0,2,1",
    # A window of more places than a byte can number.
    "maxpool2d n1c2h19w21 r17s17 st2 pd8",
    # ceil_mode; windows that cover nothing of the image.
    "maxpool2d n1c3h10w11 r3s3 st2 pd0 ceil",
    "maxpool2d n2c2h5w6 r2s2 st2 pd1 ceil",
    "maxpool2d n1c3h10w13 r3s2 st2x3 pd1x0 dl2x1 ceil",
    "maxpool2d n1c2h2w3 r2s2 st1 pd1 dl3",
    # One of everything; nothing of something.
    "maxpool2d n1c1h1w1 r1s1 st1 pd0",
    "maxpool2d n0c3h5w5 r2s2 st2 pd0",
    "maxpool2d n2c0h5w5 r2s2 st2 pd0",
]


#: For Numba's lines, whose CUDA twins go through all of the above: what their own indices can get wrong. The
#: exhaustive run has the whole lists.
CONV2D_NUMBA = [
    "conv2d n1c33h1w17 k31r1s1 st1 pd0",
    "conv2d n2c15h4w4 k33r1s1 st1 pd0",
    "conv2d n2c5h7w15 k17r3s3 st1 pd1",
    "conv2d n1c17h9w17 k15r3s3 st1 pd1",
    "conv2d n1c4h3w33 k5r3s3 st1 pd1",
    "conv2d n3c5h11w13 k6r3s3 st1 pd1",
    "conv2d n2c3h11w13 k8r7s7 st2 pd3",
    "conv2d n1c3h23w19 k6r11s11 st4 pd2",
    "conv2d n1c8h9w11 k9r3s3 st2 pd1",
    "conv2d n2c6h11w14 k8r1s1 st2 pd0",
    "conv2d n1c4h9w10 k5r2s2 st3 pd0",
    "conv2d n2c5h13w11 k9r3s5 st2x1 pd1,2,0,3",
    "conv2d n1c2h13w9 k3r3s2 st2x1 pd3x1 dl3x2",
    "conv2d n1c2h3w4 k3r2s2 st2 pd5,3,2,6",
    "conv2d n1c4h9w15 k6r3s3 st1x2 pd2 dl2 g2",
    "conv2d n2c6h7w8 k9r3s3 st1 pd1 g3",
    "conv2d n1c5h8w9 k10r3s3 st1 pd1 g5",
    "conv2d n1c1h1w1 k1r1s1 st1 pd0",
    "conv2d n0c3h5w5 k4r3s3 st1 pd1",
    "conv2d n2c0h5w5 k4r3s3 st1 pd1",
    "conv2d n2c3h5w5 k0r3s3 st1 pd1",
]

MAXPOOL2D_NUMBA = [
    "maxpool2d n1c33h5w30 r2s2 st2 pd0",
    "maxpool2d n1c7h9w17 r3s3 st2 pd1",
    "maxpool2d n2c5h7w9 r3s3 st1 pd1",
    "maxpool2d n3c7h11w13 r3s2 st1x2 pd1",
    "maxpool2d n1c4h11w12 r2s2 st5x3 pd0",
    "maxpool2d n2c5h7w5 r7s5 st1 pd0",
    "maxpool2d n1c3h8w9 r3s3 st2 pd0,1,0,1",
    "maxpool2d n1c2h19w21 r17s17 st2 pd8",
    "maxpool2d n1c3h10w13 r3s2 st2x3 pd1x0 dl2x1 ceil",
    "maxpool2d n2c2h5w6 r2s2 st2 pd1 ceil",
    "maxpool2d n1c2h2w3 r2s2 st1 pd1 dl3",
    "maxpool2d n0c3h5w5 r2s2 st2 pd0",
    "maxpool2d n2c0h5w5 r2s2 st2 pd0",
]


def every_problem_of(kernel: Kernel) -> list[str]:
    """The shared problems of a line's operation, and its own."""
    shared = CONV2D_CUDA if kernel.operation == "conv2d" else MAXPOOL2D_CUDA
    if kernel.algorithm == "depthwise":
        shared = shared + CONV2D_DEPTHWISE_CUDA
    return [*shared, *kernel.problems]


def problems_of(kernel: Kernel) -> list[str]:
    """Those that a line meets in the default run: all of them, or part of a family's, or few."""
    if kernel.backend == "numba":
        return [*(CONV2D_NUMBA if kernel.operation == "conv2d" else MAXPOOL2D_NUMBA), *kernel.problems]
    family = [line for line in kernels(kernel.operation, kernel.pass_) if _is_of_family(line)]
    every = every_problem_of(kernel)
    return (
        [text for turn, text in enumerate(every) if kernel is _next(family, turn, text)]
        if _is_of_family(kernel)
        else every
    )


def _is_of_family(kernel: Kernel) -> bool:
    """Lines that gather their operands by the same code, and differ in how these are multiplied."""
    return kernel.backend == "cuda" and kernel.algorithm.startswith("implicit_gemm")


def _next(family: list[Kernel], turn: int, text: str) -> Kernel:
    """Whose turn a problem is: the first, from there on, that takes it in any dtype."""
    ordered = family[turn % len(family) :] + family[: turn % len(family)]
    able = [
        line
        for line in ordered
        if any(
            line.supports(parse_problem(f"{text} {dtype} {line.layouts[0]}")) is None for dtype in line.dtypes
        )
    ]
    return (able or ordered)[0]


def pairs(kernel: Kernel) -> list[tuple[str, str]]:
    """The dtypes and layouts that a line is run in by default: every dtype, both layouts for the first.

    Which layout each of the other dtypes has depends on the line, so that all pairs occur in the table.
    """
    turn = zlib.crc32(kernel.id.encode())
    taken = [layout for layout in LAYOUTS if layout in kernel.layouts]
    others = [
        (dtype, taken[(turn + place) % len(taken)]) for place, dtype in enumerate(kernel.dtypes) if place > 0
    ]
    return [(kernel.dtypes[0], layout) for layout in taken] + others


def shares(kernel: Kernel) -> dict[tuple[str, str], list[Problem]]:
    """The problems of a line, dealt out to its pairs of dtype and layout, each to one that supports it.

    What no pair supports is dealt to the first, and will be counted as unsupported.
    """
    supported: dict[tuple[str, str], list[Problem]] = {pair: [] for pair in pairs(kernel)}
    unsupported: list[Problem] = []
    for text in problems_of(kernel):
        problems = {pair: parse_problem(f"{text} {pair[0]} {pair[1]}") for pair in supported}
        able = [pair for pair in supported if kernel.supports(problems[pair]) is None]
        if able:
            pair = min(able, key=lambda pair: len(supported[pair]))
            supported[pair].append(problems[pair])
        else:
            unsupported.append(next(iter(problems.values())))
    first = next(iter(supported))
    return {**supported, first: supported[first] + unsupported}

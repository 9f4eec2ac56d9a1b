"""The shared list of problems, in the descriptor's text form: the corners where kernels go wrong.

Each text is without dtype and layout; :func:`variants` adds them. The sizes are small, so that every line of
the table can go through all of them in every test run; :data:`CONV2D_MORE` and :data:`MAXPOOL2D_MORE` are the
exhaustive part. The lines of CUDA have larger tiles and, on the emulator, less time: they go through
:data:`tests.problems_cuda.CONV2D_CUDA` and what their lines add.
"""

from __future__ import annotations

import itertools

from pyconv.problem import LAYOUTS, Problem, parse_problem

#: What the default run covers of every problem; the 16-bit dtypes, of the core.
DTYPES = ("f32", "f64")
DTYPES_16_BIT = ("f16", "bf16")

#: The problems that show most of a kernel's paths in the least time: what every instruction set runs.
CONV2D_CORE = [
    "conv2d n2c3h9w17 k7r3s3 st1 pd1",
    "conv2d n1c17h6w33 k33r3s3 st1 pd1",
    "conv2d n2c8h7w29 k16r1s1 st1 pd0",
    "conv2d n2c5h13w11 k9r3s5 st2x1 pd1,2,0,3",
    "conv2d n1c4h9w15 k6r3s3 st1x2 pd2 dl2 g2",
    "conv2d n2c19h7w16 k19r3s3 st1 pd1 g19",
    "conv2d n1c6h9w9 k12r5s5 st2 pd2 g6",
    "conv2d n1c67h5w7 k37r3s3 st1 pd1",
]

#: Sums so long, and results so many, that parts of a sum in float32 have to wait for the rest: for 16 bits.
CONV2D_LONG = [
    "conv2d n1c620h4w5 k7r3s3 st1 pd1",
    "conv2d n1c6h5w4 k620r3s3 st2 pd1",
    "conv2d n1c40h3w5 k300r3s3 st1 pd1",
    "conv2d n1c40h17w16 k5r3s3 st1 pd1",
]

CONV2D = [
    *CONV2D_CORE,
    # Tile edges +-1: output columns and channels around 6, 8, 14, 16, 28, 32, filters around the same.
    "conv2d n1c7h5w13 k5r3s3 st1 pd1",
    "conv2d n1c8h6w14 k6r3s3 st1 pd1",
    "conv2d n1c9h7w15 k7r3s3 st1 pd1",
    "conv2d n1c15h8w16 k8r3s3 st1 pd1",
    "conv2d n1c16h9w17 k9r3s3 st1 pd1",
    "conv2d n1c5h3w27 k13r3s3 st1 pd1",
    "conv2d n1c6h2w28 k14r3s3 st1 pd1",
    "conv2d n1c13h3w29 k15r3s3 st1 pd1",
    "conv2d n1c14h3w31 k17r3s3 st1 pd1",
    "conv2d n1c28h3w32 k31r3s3 st1 pd1",
    "conv2d n1c31h2w34 k32r3s3 st1 pd1",
    "conv2d n1c32h5w5 k28r1s1 st1 pd0",
    "conv2d n1c33h4w8 k29r1s1 st1 pd0",
    "conv2d n3c27h2w3 k27r1s1 st2 pd0",
    # Primes and rectangles.
    "conv2d n3c7h11w13 k5r3s2 st1 pd0",
    "conv2d n2c11h19w23 k3r7s5 st3x2 pd3x1",
    "conv2d n1c1h31w3 k2r5s1 st1 pd2x0",
    "conv2d n1c2h1w37 k3r1s7 st1x2 pd0x3",
    # One of anything.
    "conv2d n1c1h1w1 k1r1s1 st1 pd0",
    "conv2d n2c3h1w1 k4r3s3 st1 pd1",
    "conv2d n5c1h4w4 k1r4s4 st1 pd0",
    "conv2d n1c1h9w9 k16r3s3 st1 pd1",
    "conv2d n1c16h9w9 k1r3s3 st1 pd1",
    # Filters larger than the image, padding at and beyond the filter's reach.
    "conv2d n1c3h2w3 k4r5s5 st1 pd2",
    "conv2d n2c2h3w3 k3r7s7 st1 pd3",
    "conv2d n1c3h4w5 k2r3s3 st1 pd4",
    "conv2d n1c2h3w4 k3r2s2 st2 pd5,3,2,6",
    "conv2d n1c2h1w1 k2r3s3 st3 pd4",
    # Padding per side.
    "conv2d n1c3h6w7 k4r2s2 st1 pd0,1,0,1",
    "conv2d n1c3h6w7 k4r4s4 st1 pd1,2,1,2",
    "conv2d n2c2h5w17 k3r3s3 st1 pd0,0,2,0",
    # Strides: that of the first layers, larger than the filter, and leaving rows over.
    "conv2d n1c3h19w23 k8r7s7 st2 pd3",
    "conv2d n1c3h23w19 k6r11s11 st4 pd2",
    "conv2d n1c4h9w10 k5r2s2 st3 pd0",
    "conv2d n2c6h11w14 k8r1s1 st2 pd0",
    "conv2d n1c5h8w8 k6r1s1 st3x5 pd1",
    "conv2d n1c3h16w17 k4r3s3 st2 pd1",
    # Dilation.
    "conv2d n1c3h9w11 k4r3s3 st1 pd2 dl2",
    "conv2d n1c2h13w9 k3r3s2 st2x1 pd3x1 dl3x2",
    "conv2d n1c2h5w5 k3r2s2 st1 pd4 dl6",
    # Groups, depthwise with multipliers 1 and 2.
    "conv2d n2c6h7w8 k9r3s3 st1 pd1 g3",
    "conv2d n1c32h4w5 k34r1s1 st1 pd0 g2",
    "conv2d n1c9h17w15 k9r3s3 st1 pd1 g9",
    "conv2d n2c33h8w14 k33r3s3 st2 pd1 g33",
    "conv2d n1c16h6w31 k16r5s5 st1 pd2 g16",
    "conv2d n1c5h8w9 k10r3s3 st1 pd1 g5",
    "conv2d n1c7h9w7 k7r3s3 st1 pd2 dl2 g7",
    "conv2d n1c3h4w3 k3r5s7 st1 pd1,3,3,4 g3",
    "conv2d n1c2h7w5 k2r1s3 st3x2 pd0x1 g2",
    # Images narrower than the stride: one residue class of dgrad, with some of the taps.
    "conv2d n1c2h2w1 k2r2s2 st1x2 pd0,0,0,1 g2",
    "conv2d n2c3h1w2 k6r3s4 st2x3 pd1,1,1,2 g3",
    # Nothing of something: an empty sum is 0, an empty result is empty.
    "conv2d n0c3h5w5 k4r3s3 st1 pd1",
    "conv2d n2c0h5w5 k4r3s3 st1 pd1",
    "conv2d n2c3h5w5 k0r3s3 st1 pd1",
    "conv2d n0c4h5w5 k4r3s3 st1 pd1 g4",
]

MAXPOOL2D_CORE = [
    "maxpool2d n2c3h9w17 r2s2 st2 pd0",
    "maxpool2d n1c17h11w33 r3s3 st2 pd1",
    "maxpool2d n1c5h7w16 r3s3 st1 pd1",
    "maxpool2d n1c3h10w13 r3s2 st2x3 pd1x0 dl2x1 ceil",
    "maxpool2d n1c2h2w3 r2s2 st1 pd1 dl3",
]

MAXPOOL2D = [
    *MAXPOOL2D_CORE,
    # Tile edges +-1 in output columns and channels.
    *(f"maxpool2d n1c{c}h4w{w} r2s2 st2 pd0" for c, w in ((5, 26), (6, 28), (7, 30), (8, 34), (9, 64))),
    *(f"maxpool2d n1c{c}h5w{w} r3s3 st2 pd1" for c, w in ((13, 31), (14, 32), (15, 33), (16, 55), (31, 57))),
    *(f"maxpool2d n1c{c}h3w{w} r3s3 st1 pd1" for c, w in ((32, 13), (33, 14), (1, 15), (28, 31), (29, 65))),
    # Primes, rectangles, 1x1 images and windows, one window over the whole image.
    "maxpool2d n3c7h11w13 r3s2 st1x2 pd1",
    "maxpool2d n2c3h1w37 r1s5 st1x3 pd0x2",
    "maxpool2d n2c4h1w1 r1s1 st1 pd0",
    "maxpool2d n1c2h1w1 r3s3 st1 pd1",
    "maxpool2d n2c5h7w5 r7s5 st1 pd0",
    "maxpool2d n1c3h6w9 r1s1 st2 pd0",
    "maxpool2d n1c3h2w3 r5s5 st1 pd2",
    # Stride larger than the window, overlapping by all but one.
    "maxpool2d n1c4h11w12 r2s2 st5x3 pd0",
    "maxpool2d n1c3h9w20 r5s5 st1 pd2",
    "maxpool2d n1c16h6w6 r4s4 st1 pd2",
    # ceil_mode: a last partial window, and one that would start in the padding and is dropped.
    "maxpool2d n1c3h10w11 r3s3 st2 pd0 ceil",
    "maxpool2d n2c2h5w6 r2s2 st2 pd1 ceil",
    "maxpool2d n1c3h3w4 r2s3 st3 pd1 ceil",
    # Dilation; windows that cover nothing of the image.
    "maxpool2d n1c3h11w9 r3s3 st1 pd1 dl2",
    "maxpool2d n1c2h13w17 r2s3 st2x1 pd1 dl4x3",
    "maxpool2d n1c9h3w1 r2s2 st1 pd0x1 dl1x2",
    "maxpool2d n1c1h1w1 r2s2 st1 pd1 dl2",
    # Padding per side.
    "maxpool2d n1c3h8w9 r3s3 st2 pd0,1,0,1",
    "maxpool2d n1c4h6w15 r2s4 st1x2 pd1,0,2,1",
    # Nothing of something.
    "maxpool2d n0c3h5w5 r2s2 st2 pd0",
    "maxpool2d n2c0h5w5 r2s2 st2 pd0",
]


def _conv2d_more() -> list[str]:
    texts = []
    for w, k in itertools.product((13, 16, 17, 27, 28, 32, 33), (5, 8, 15, 16, 17, 29, 33)):
        texts.append(f"conv2d n1c3h4w{w} k{k}r3s3 st1 pd1")
        texts.append(f"conv2d n1c{k}h3w{w} k6r1s1 st1 pd0")
    for size, stride, pad, dilation in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 3), (1, 2)):
        texts.append(f"conv2d n2c5h11w14 k7r{size}s{size} st{stride} pd{pad} dl{dilation}")
        texts.append(f"conv2d n1c10h10w12 k10r{size}s{size} st{stride} pd{pad} dl{dilation} g10")
        texts.append(f"conv2d n1c4h11w13 k6r{size}s{size + 1} st{stride}x1 pd{pad},1,0,{pad} dl{dilation} g2")
    # Reductions longer than a panel of the GEMM, in each of its three dimensions.
    texts += [
        "conv2d n1c300h4w5 k13r3s3 st1 pd1",
        "conv2d n2c3h40w41 k5r3s3 st1 pd1",
        "conv2d n1c5h6w7 k300r3s3 st1 pd1",
        "conv2d n9c130h3w3 k129r1s1 st1 pd0",
        "conv2d n2c64h14w14 k64r3s3 st1 pd1",
        "conv2d n1c3h64w65 k16r7s7 st2 pd3",
        "conv2d n2c96h15w16 k96r3s3 st1 pd1 g96",
    ]
    return texts


def _maxpool2d_more() -> list[str]:
    texts = []
    for size, stride, dilation, ceil in itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2), ("", " ceil")):
        for pad in range(size // 2 + 1):
            texts.append(f"maxpool2d n1c5h11w14 r{size}s{size} st{stride} pd{pad} dl{dilation}{ceil}")
            texts.append(f"maxpool2d n1c17h12w33 r{size}s{size} st{stride} pd{pad} dl{dilation}{ceil}")
    return texts


#: The rest of the exhaustive sweep (``make test-all``).
CONV2D_MORE = _conv2d_more()
MAXPOOL2D_MORE = _maxpool2d_more()


def variants(text: str, dtypes: tuple[str, ...] = DTYPES) -> list[Problem]:
    """The problem of ``text`` in every one of some dtypes, in both layouts."""
    return [parse_problem(f"{text} {dtype} {layout}") for dtype in dtypes for layout in LAYOUTS]


#: Problems that a CPU line cuts into many units of work, for threads and races: the first that it supports.
CONV2D_MANY_UNITS = [
    "conv2d n8c24h16w20 k24r7s7 st1 pd3 g24",
    "conv2d n4c16h17w24 k24r3s3 st1 pd1",
]
MAXPOOL2D_MANY_UNITS = [
    "maxpool2d n4c40h31w33 r2s2 st1 pd0",
    "maxpool2d n4c40h31w33 r3s3 st2 pd1",
]

"""How the CUDA kernels of max-pooling share a result among threads: the host's half of ``items.cuh``.

A thread's item is some rows of one column of the result, for a few channels of nhwc or one or two columns of
nchw. :func:`launch` numbers them, and cuts what has too many for 32 bits into several launches.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from pyconv.kernels.maxpool2d.restrictions import indices_fit_int32, place_fits_int32, tap_fits_a_byte

from pyconv.backends.program import MakeProgram, Program, Step, blocks, cpp_layout, cpp_type
from pyconv.problem import DTYPES, Pool2dProblem, Problem
from pyconv.registry import Kernel

#: Threads of a block. 256 divide the 2048 of a multiprocessor evenly at any number of registers up to 64, and
#: are few enough that the last, partial wave of blocks is short.
THREADS = 256
#: Items of one launch, at most: their numbers are divided by multiplication, which takes 31 bits.
MOST_ITEMS = 2**30
#: Bytes that one memory instruction of a thread moves at most.
VECTOR_BYTES = 16

#: Windows that the compiler is told, ``(size, stride)``, square and dense: VGG's; ResNet's and AlexNet's;
#: Inception's.
KNOWN = ((2, 2), (3, 2), (3, 1))


class Divider(ctypes.Structure):
    """``Divider`` of items.cuh: ``n // divisor`` for ``n < 2**31``."""

    _fields_ = (
        ("divisor", ctypes.c_uint32),
        ("multiplier", ctypes.c_uint32),
        ("shift", ctypes.c_uint32),
    )

    @classmethod
    def of(cls, divisor: int) -> "Divider":
        shift = (divisor - 1).bit_length()
        return cls(divisor, ((1 << 32) * ((1 << shift) - divisor)) // divisor + 1, shift)


class Items(ctypes.Structure):
    """``Items`` of items.cuh."""

    _fields_ = (
        ("vectors", Divider),
        ("columns", Divider),
        ("groups", Divider),
        ("taps", Divider),
        ("count", ctypes.c_uint32),
        ("first_group", ctypes.c_uint32),
        ("first_image", ctypes.c_int64),
        ("p", ctypes.c_int32),
        ("q", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Tile:
    """What a thread computes: ``rows`` x ``columns`` of the result, of ``elements`` channels each."""

    source: str
    kernel: str
    rows: int = 1
    columns: int = 1
    elements: int = 1
    sass: tuple[str, ...] = ()


def known_window(problem: Pool2dProblem) -> tuple[int, int] | None:
    """``(size, stride)`` if it is one of :data:`KNOWN`."""
    window = problem.r, problem.stride_h
    is_plain = (problem.s, problem.stride_w) == window and problem.dilation_h == problem.dilation_w == 1
    return window if is_plain and window in KNOWN else None


def channels(problem: Pool2dProblem) -> int:
    """Channels of nhwc that a thread moves as one vector; 1 in nchw, or where c is no multiple of it."""
    whole = VECTOR_BYTES // problem.element_bytes
    return whole if problem.layout == "nhwc" and problem.c % whole == 0 else 1


def comes_in_pairs(problem: Pool2dProblem) -> bool:
    """Whether a thread of nchw takes two columns, 16-bit elements in one register (pairs.cuh)."""
    return problem.layout == "nchw" and problem.element_bytes == 2


def typed(problem: Problem, *numbers: int | str) -> str:
    """Template arguments: type, layout, threads of a block, and these."""
    return ", ".join(map(str, (cpp_type(problem), cpp_layout(problem), THREADS, *numbers)))


def launch(problem: Pool2dProblem, tile: Tile, operands: tuple[str, ...], rows: int, columns: int) -> Program:
    """The launches of ``tile`` over a result of ``rows`` x ``columns`` pixels."""
    images, inner = (problem.n * problem.c, 1) if problem.layout == "nchw" else (problem.n, problem.c)
    groups, columns, vectors = blocks(rows, tile.rows), blocks(columns, tile.columns), inner // tile.elements
    if not images * groups * columns * vectors:
        return Program(())
    steps = tuple(
        Step(
            f"maxpool2d/{tile.source}",
            tile.kernel,
            grid=(blocks(items.count, THREADS), 1, 1),
            block=(THREADS, 1, 1),
            arguments=(*operands, problem, items),
            sass=tile.sass,
        )
        for items in _items(problem, images, groups, columns, vectors)
    )
    return Program(steps)


def _items(problem: Pool2dProblem, images: int, groups: int, columns: int, vectors: int) -> Iterator[Items]:
    """The items of each launch: runs of whole rows of items, ``columns * vectors`` each."""
    row = columns * vectors
    every = MOST_ITEMS // row
    for first in range(0, images * groups, every):
        yield Items(
            vectors=Divider.of(vectors),
            columns=Divider.of(columns),
            groups=Divider.of(groups),
            taps=Divider.of(problem.s),
            count=min(every, images * groups - first) * row,
            first_group=first % groups,
            first_image=first // groups,
            p=problem.p,
            q=problem.q,
        )


#: Problems at the edges of these tiles, for the battery: results of a column around 4 and 8, pairs of columns
#: whose last one is half, padding that makes a pair begin at either element of a word, a vector of channels.
EDGES = (
    *(
        f"maxpool2d n1c{c}h{h}w{w} r2s2 st2 pd0"
        for c, h, w in ((8, 7, 6), (3, 8, 10), (16, 10, 4), (1, 17, 12))
    ),
    *(f"maxpool2d n1c{c}h{h}w{w} r3s3 st2 pd1" for c, h, w in ((8, 6, 8), (2, 7, 10), (4, 9, 7), (3, 16, 6))),
    *(f"maxpool2d n1c{c}h{h}w{w} r3s3 st1 pd1" for c, h, w in ((8, 3, 4), (2, 7, 6), (4, 9, 5), (9, 17, 8))),
    "maxpool2d n2c8h11w10 r3s3 st2 pd0 ceil",
    "maxpool2d n2c2h9w8 r3s3 st1 pd0",
    "maxpool2d n1c8h6w6 r2s2 st2 pd1",
    "maxpool2d n1c2h5w4 r2s2 st2 pd3,2,5,4",
    "maxpool2d n1c2h4w6 r3s3 st1 pd4,5,6,3",
)


def cuda_line(pass_: str, source: str, program: MakeProgram) -> Kernel:
    """The table line of a pass."""
    if pass_.endswith("_tap"):
        restriction = tap_fits_a_byte
    else:
        restriction = indices_fit_int32 if pass_ == "fprop" else place_fits_int32
    return Kernel(
        "maxpool2d",
        pass_,
        "direct",
        "cuda",
        tuple(DTYPES),
        source=f"maxpool2d/{source}",
        restriction=restriction,
        program=program,
        batch_invariant=True,
        proved=("emulator",),
        problems=EDGES,
    )

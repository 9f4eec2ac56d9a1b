"""Launches and table lines of ``winograd.cu``: the transforms, and the products of matrices between them.

F(m x m, 3 x 3), ``m`` outputs a side. Tensors go by "in" and "out": in fprop ``x`` and ``y``, in dgrad ``dy``
and ``dx``. The workspace holds U of all filters, then V and P of a chunk of tiles, which the next chunk
overwrites.
"""

from __future__ import annotations

import ctypes
from functools import partial

from pyconv.kernels.conv2d.restrictions import indices_fit_int32
from pyconv.kernels.gemm.gemm_launch import Matrix, Product
from pyconv.kernels.gemm.simt_launch import PIPELINED_RUNG

from pyconv.backends.program import Argument, Program, Scratch, Step, Work, blocks, cpp_layout
from pyconv.problem import Conv2dProblem, Problem
from pyconv.registry import Kernel

SOURCE = "conv2d/winograd.cu"

#: Bytes of V and P of one chunk of tiles. It only has to be large enough that the products of a chunk fill
#: the device: 256 MiB are 4096 tiles of F(2x2) at 512 channels and filters, 2048 blocks of 128 x 128. A chunk
#: that stayed in the L2 cache (20 MiB) would spare DRAM both V and P, but leave half of the device idle.
WORKSPACE = 256 * 2**20
#: Threads of a block (``kWinogradThreads``).
THREADS = 256
#: Lines of U, V and P start at a multiple of this many floats, so that they can be copied 16 bytes at once.
PITCH = 4
#: Chunks are a multiple of this many tiles, those of a warp.
TILE_GRAIN = 32
#: Everything in the workspace starts at a multiple of this.
_ALIGNMENT = 256

#: Lanes along the lines that a transform writes (``kFilterAcross``, ``kInputAcross``, ``kOutputAcross``).
FILTER_ACROSS = 8
INPUT_ACROSS = {"nchw": 32, "nhwc": 8}
OUTPUT_ACROSS = 32


class Plan(ctypes.Structure):
    """``WinogradPlan`` of ``winograd.cu``."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "groups", "in_channels", "out_channels", "in_rows", "in_columns", "out_rows", "out_columns",
            "pad_top", "pad_left", "tile_rows", "tile_columns", "first_tile", "tiles",
            "u_pitch", "v_pitch", "p_pitch",
        )
    )  # fmt: skip

    groups: int
    in_channels: int
    out_channels: int
    tile_rows: int
    tile_columns: int
    tiles: int
    u_pitch: int
    v_pitch: int
    p_pitch: int


def _pitch(extent: int) -> int:
    return blocks(extent, PITCH) * PITCH


def _aligned(floats: int) -> int:
    return blocks(4 * floats, _ALIGNMENT) * _ALIGNMENT


def tiles_of(problem: Conv2dProblem, pass_: str, m: int) -> tuple[int, int]:
    """Rows and columns of tiles of an image."""
    rows, columns = (problem.p, problem.q) if pass_ == "fprop" else (problem.h, problem.w)
    return blocks(rows, m), blocks(columns, m)


def plan(problem: Conv2dProblem, pass_: str, m: int, first_tile: int, tiles: int) -> Plan:
    """The numbers of one chunk."""
    inside, outside = (problem.h, problem.w), (problem.p, problem.q)
    channels, pads = (problem.group_c, problem.group_k), (problem.pad_top, problem.pad_left)
    if pass_ == "dgrad":
        inside, outside, channels = outside, inside, channels[::-1]
        pads = 2 - problem.pad_top, 2 - problem.pad_left
    p_lines = tiles if problem.layout == "nchw" else channels[1]
    return Plan(
        problem.groups, *channels, *inside, *outside, *pads, *tiles_of(problem, pass_, m), first_tile, tiles,
        _pitch(channels[1]), _pitch(tiles), _pitch(p_lines),
    )  # fmt: skip


def filter_step(chunk: Plan, problem: Conv2dProblem, pass_: str, m: int) -> Step:
    """U of all filters, at the start of the workspace."""
    channels = chunk.groups * chunk.in_channels
    return Step(
        SOURCE,
        f"winograd_filter<{m}, {cpp_layout(problem)}, {'kFprop' if pass_ == 'fprop' else 'kDgrad'}>",
        (blocks(chunk.out_channels, FILTER_ACROSS) * blocks(channels, THREADS // FILTER_ACROSS), 1, 1),
        (THREADS, 1, 1),
        (chunk, "w", Scratch(0)),
        work=Work(tensor_bytes=4 * problem.w_size, scratch_bytes=4 * problem.w_size * (m + 2) ** 2 / 9),
    )


def filter_bytes(chunk: Plan, m: int) -> int:
    """Of U."""
    return _aligned(chunk.groups * (m + 2) ** 2 * chunk.in_channels * chunk.u_pitch)


def _tiles_of_chunk(problem: Conv2dProblem, m: int) -> int:
    floats = (m + 2) ** 2 * (problem.c + problem.k + PITCH * problem.groups)  # of a tile, P's lines padded
    return max(1, WORKSPACE // (4 * max(1, floats)) // TILE_GRAIN) * TILE_GRAIN


def program(problem: Problem, pass_: str, m: int) -> Program:
    assert isinstance(problem, Conv2dProblem)
    names = ("x", "y") if pass_ == "fprop" else ("dy", "dx")
    numbers, layout = f"{m}, {cpp_layout(problem)}", problem.layout
    places = (m + 2) ** 2
    tile_rows, tile_columns = tiles_of(problem, pass_, m)
    every_tile, of_chunk = problem.n * tile_rows * tile_columns, _tiles_of_chunk(problem, m)
    chunks = [
        plan(problem, pass_, m, first, min(of_chunk, every_tile - first))
        for first in range(0, every_tile, of_chunk)
    ]

    def step(
        name: str,
        more: str,
        across: int,
        items: int,
        rows: int,
        arguments: tuple[Argument, ...],
        tensor_floats: float,
        scratch_floats: float,
        sass: str = "",
    ) -> Step:
        grid = blocks(items, across) * blocks(rows, THREADS // across)
        return Step(
            SOURCE,
            f"winograd_{name}<{numbers}{more}>",
            (grid, 1, 1),
            (THREADS, 1, 1),
            arguments,
            sass=(sass,) if sass else (),
            work=Work(tensor_bytes=4 * tensor_floats, scratch_bytes=4 * scratch_floats),
        )

    steps: list[Step] = []
    u, v, p = Scratch(0), Scratch(0), Scratch(0)
    end = 0
    for chunk in chunks:
        groups, inputs, outputs = chunk.groups, chunk.in_channels, chunk.out_channels
        if chunk is chunks[0]:  # the largest; the others have the same U and the same places
            v = Scratch(filter_bytes(chunk, m))
            p = Scratch(v.offset + _aligned(groups * places * inputs * chunk.v_pitch))
            p_lines = outputs if layout == "nchw" else chunk.tiles
            end = p.offset + _aligned(groups * places * p_lines * chunk.p_pitch)
            steps.append(filter_step(chunk, problem, pass_, m))
        vector = 2 if layout == "nhwc" and m == 2 and inputs % 2 == 0 else 1
        items, lanes = chunk.tiles, INPUT_ACROSS[layout]
        rows, floats = groups * inputs // vector, groups * inputs * chunk.tiles
        load = "LDG.E.64.CONSTANT" if vector == 2 else ""
        arguments: tuple[Argument, ...] = (chunk, names[0], v)
        steps.append(
            step("input", f", {vector}", lanes, items, rows, arguments, m * m * floats, places * floats, load)
        )
        steps.append(PIPELINED_RUNG.step(_product(chunk, layout, places, u, v, p)))
        items, rows, store = chunk.tiles, groups * outputs, f"STG.E.{32 * m}"
        if layout == "nhwc":
            items, rows, store = rows, items, ""
        floats = groups * outputs * chunk.tiles
        arguments = (chunk, p, "bias", names[1])
        steps.append(
            step("output", "", OUTPUT_ACROSS, items, rows, arguments, m * m * floats, places * floats, store)
        )
    return Program(tuple(steps), end)


def _product(chunk: Plan, layout: str, places: int, u: Scratch, v: Scratch, p: Scratch) -> Product:
    """``P = U^T V`` (nchw) or its transpose ``V^T U`` (nhwc), for every place and group."""
    inputs, outputs, tiles = chunk.in_channels, chunk.out_channels, chunk.tiles
    u_matrix = Matrix(u, "kMnMajor", line_stride=chunk.u_pitch, batch_stride=inputs * chunk.u_pitch)
    v_matrix = Matrix(v, "kMnMajor", line_stride=chunk.v_pitch, batch_stride=inputs * chunk.v_pitch)
    sizes, a, b = (outputs, tiles), u_matrix, v_matrix
    if layout == "nhwc":
        sizes, a, b = (tiles, outputs), v_matrix, u_matrix
    c = Matrix(p, "kMnMajor", line_stride=chunk.p_pitch, batch_stride=sizes[0] * chunk.p_pitch)
    return Product("f32", "f32", *sizes, inputs, a, b, c, batch=chunk.groups * places, bias=None)


# ---- Table lines -----------------------------------------------------------------------------------------


def restriction(problem: Problem, pass_: str, m: int) -> str | None:
    assert isinstance(problem, Conv2dProblem)
    if (problem.r, problem.s) != (3, 3):
        return f"filters of {problem.r}x{problem.s} (takes 3x3)"
    if (problem.stride_h, problem.stride_w) != (1, 1):
        return "a stride above 1, of which a tile would compute what is thrown away"
    if (problem.dilation_h, problem.dilation_w) != (1, 1):
        return "a dilation above 1"
    tile_rows, tile_columns = tiles_of(problem, pass_, m)
    if problem.n * tile_rows * tile_columns >= 2**31 - TILE_GRAIN:
        return "2^31 tiles or more"
    if problem.w_size >= 2**31 or (m + 2) ** 2 * max(problem.c, problem.k) >= 2**31:
        return "2^31 filter taps, or transformed channels, or more"
    return indices_fit_int32(problem)


#: Tiles of every raggedness in either direction, one and several images; channels around the GEMM's tiles
#: and over two of its chains; padding per side, wider than a filter, and none; an output of one row.
PROBLEMS = (
    "conv2d n2c5h8w8 k7r3s3 st1 pd1",
    "conv2d n3c6h5w7 k4r3s3 st1 pd1",
    "conv2d n1c12h6w10 k9r3s3 st1 pd0",
    "conv2d n2c3h4w9 k5r3s3 st1 pd2,0,1,3",
    "conv2d n1c4h3w4 k3r3s3 st1 pd4,3,5,6",
    "conv2d n1c2h3w14 k3r3s3 st1 pd0",
    "conv2d n1c66h4w4 k130r3s3 st1 pd1",
    "conv2d n1c270h3w3 k4r3s3 st1 pd1",
    "conv2d n2c8h7w6 k12r3s3 st1 pd1 g2",
    "conv2d n1c2h31w33 k2r3s3 st1 pd1",
)


#: ``python -m bench.winograd_error``: 0.3e-6 to 1.6e-6 with channels from 1 to 1024; README.md has the table.
F4_ACCURACY = "3e-6 (winograd)"


def lines(m: int, **claims: object) -> list[Kernel]:
    return [
        Kernel(
            "conv2d",
            pass_,
            f"winograd_{m}x{m}",
            "cuda",
            ("f32",),
            source=SOURCE,
            restriction=partial(restriction, pass_=pass_, m=m),
            program=partial(program, pass_=pass_, m=m),
            batch_invariant=True,
            nonfinite="tile",
            algebra="winograd",
            proved=("emulator",),
            problems=PROBLEMS,
            **claims,  # type: ignore[arg-type]
        )
        for pass_ in ("fprop", "dgrad")
    ]


KERNELS = [
    *lines(2),
    *lines(4, accuracy=F4_ACCURACY, exact_integers=False),
]

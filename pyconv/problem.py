"""The problem descriptors: one convolution or one pooling, and every size computed from it.

``Conv2dProblem`` and ``Pool2dProblem`` are frozen dataclasses; ``kernels/common/problem.h`` has plain C
structs of the same fields in the same order, passed by value. Nothing else in pyconv computes an output
size, a flop count or a byte count.

Each descriptor has a one-line text form that parses back, and the tests, the benchmarks and the tuning
cache all speak it::

    conv2d n8c64h56w56 k64r3s3 st1 pd1 f32 nhwc
    conv2d n8c96h56w56 k96r3s3 st2 pd1 g96 f32 nchw
    conv2d n1c3h9w7 k4r5s3 st2x1 pd1,2,0,3 dl1x2 f64 nchw
    maxpool2d n8c64h112w112 r3s3 st2 pd1 ceil f32 nchw

A pair is ``height x width`` and is shortened to one number when both are equal; padding on four sides is
``top,bottom,left,right``; ``dl1``, ``g1`` are left out.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch

Layout = Literal["nchw", "nhwc"]

#: Name in a descriptor -> torch dtype, in the order of the C enum ``DType``.
DTYPES: dict[str, torch.dtype] = {
    "f32": torch.float32,
    "f64": torch.float64,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
LAYOUTS: tuple[Layout, ...] = ("nchw", "nhwc")

CONV2D_PASSES = ("fprop", "dgrad", "wgrad", "bgrad")
#: Those that end in ``_tap`` have an argmax of one byte, the tap ``r*s_extent + s`` of the window.
POOL2D_PASSES = ("fprop", "fprop_argmax", "dgrad", "gather", "fprop_tap", "dgrad_tap", "gather_tap")

#: ``kExtentLimit`` of ``kernels/common/problem.h``.
EXTENT_LIMIT = 2**47
_MAX_BYTES = 2**63 - 1


def output_extent(extent: int, pad: int, size: int, stride: int, dilation: int) -> int:
    """Positions of a filter of ``size`` taps along ``extent`` elements; ``pad`` is the sum of both sides."""
    return max(0, (extent + pad - dilation * (size - 1) - 1) // stride + 1)


def _pair_text(pair: tuple[int, int]) -> str:
    return f"{pair[0]}" if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"


def _parse_pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second or first)


def _padding_text(padding: tuple[int, int, int, int]) -> str:
    top, bottom, left, right = padding
    if top == bottom and left == right:
        return _pair_text((top, left))
    return f"{top},{bottom},{left},{right}"


def _parse_padding(text: str) -> tuple[int, int, int, int]:
    if "," in text:
        top, bottom, left, right = (int(side) for side in text.split(","))
        return top, bottom, left, right
    vertical, horizontal = _parse_pair(text)
    return vertical, vertical, horizontal, horizontal


def _check_sizes(problem: object, positive: Sequence[str], non_negative: Sequence[str]) -> None:
    kind = type(problem).__name__
    for names, least in ((positive, 1), (non_negative, 0)):
        for name in names:
            value = getattr(problem, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{kind}: {name} must be an integer >= {least}, got {value!r}")
    for name, accepted in (("dtype", tuple(DTYPES)), ("layout", LAYOUTS)):
        if getattr(problem, name) not in accepted:
            raise ValueError(
                f"{kind}: {name} must be one of {', '.join(accepted)}, got {getattr(problem, name)!r}"
            )


def _check_extents(problem: Conv2dProblem | Pool2dProblem) -> None:
    """No axis is so long that places along it would overflow 64 bits, in the kernels' C++ too."""
    for axis, size, sides in (("h", "r", ("pad_top", "pad_bottom")), ("w", "s", ("pad_left", "pad_right"))):
        padded = getattr(problem, axis) + sum(getattr(problem, side) for side in sides)
        dilation = getattr(problem, f"dilation_{axis}")
        covered = dilation * (getattr(problem, size) - 1)
        for what, length in (
            (f"{axis} and padding are", padded),
            (f"{size} taps with dilation_{axis}={dilation} are", covered),
            (f"stride_{axis} is", getattr(problem, f"stride_{axis}")),
        ):
            if length >= EXTENT_LIMIT:
                raise ValueError(f"{type(problem).__name__}: {what} {length} long; accepted: below 2^47")


def _check_volumes(problem: Conv2dProblem | Pool2dProblem, volumes: dict[str, int]) -> None:
    for name, volume in volumes.items():
        if volume * problem.element_bytes > _MAX_BYTES:
            raise ValueError(
                f"{type(problem).__name__}: {name} would have {volume} elements, more than 2^63 - 1 bytes"
            )


class _Fields:
    """What both descriptors share."""

    _c_struct: ClassVar[type[ctypes.Structure]]
    n: int
    c: int
    h: int
    w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dtype: str
    layout: Layout

    def to_c(self) -> ctypes.Structure:
        """The C struct of the same fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        values["dtype"] = list(DTYPES).index(values["dtype"])
        values["layout"] = LAYOUTS.index(values["layout"])
        return self._c_struct(**values)

    @property
    def padding(self) -> tuple[int, int, int, int]:
        """``(top, bottom, left, right)``."""
        return self.pad_top, self.pad_bottom, self.pad_left, self.pad_right

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        raise NotImplementedError

    @property
    def x_size(self) -> int:
        return math.prod(self.x_shape)

    @property
    def y_size(self) -> int:
        return math.prod(self.y_shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def element_bytes(self) -> int:
        return self.torch_dtype.itemsize

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "nhwc" else torch.contiguous_format


@dataclass(frozen=True)
class Conv2dProblem(_Fields):
    """One 2-D convolution ``y = x * w``: ``x[n,c,h,w]``, ``w[k,c/groups,r,s]``, ``y[n,k,p,q]``.

    ``h = p*stride_h - pad_top + r*dilation_h``, the same for ``w``.

    Raises:
        ValueError: naming the field, for a negative size, a stride or dilation below 1, channels that
            ``groups`` does not divide, an axis of 2^47 or more with its padding, or a tensor of more than
            2^63 - 1 bytes.
    """

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    dtype: str = "f32"
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        _check_sizes(
            self,
            ("r", "s", "stride_h", "stride_w", "dilation_h", "dilation_w", "groups"),
            ("n", "c", "h", "w", "k", "pad_top", "pad_bottom", "pad_left", "pad_right"),
        )
        for name in ("c", "k"):
            if getattr(self, name) % self.groups:
                raise ValueError(
                    f"Conv2dProblem: {name}={getattr(self, name)} is not divisible by groups={self.groups}"
                )
        _check_extents(self)
        _check_volumes(self, {"x": self.x_size, "w": self.w_size, "y": self.y_size})

    @property
    def p(self) -> int:
        return output_extent(self.h, self.pad_top + self.pad_bottom, self.r, self.stride_h, self.dilation_h)

    @property
    def q(self) -> int:
        return output_extent(self.w, self.pad_left + self.pad_right, self.s, self.stride_w, self.dilation_w)

    @property
    def group_c(self) -> int:
        return self.c // self.groups

    @property
    def group_k(self) -> int:
        return self.k // self.groups

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.k, self.group_c, self.r, self.s

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.k, self.p, self.q

    @property
    def w_size(self) -> int:
        return math.prod(self.w_shape)

    def gemm(self, pass_: str) -> tuple[int, int, int]:
        """``(gemm_m, gemm_n, gemm_k)`` of one group of the implicit GEMM of ``pass_``."""
        npq, nhw = self.n * self.p * self.q, self.n * self.h * self.w
        crs, krs = self.group_c * self.r * self.s, self.group_k * self.r * self.s
        return {
            "fprop": (npq, self.group_k, crs),
            "dgrad": (nhw, self.group_c, krs),
            "wgrad": (self.group_k, crs, npq),
        }[pass_]

    def flops(self, pass_: str) -> int:
        """Multiplications and additions of the direct algorithm; taps on padding count, as in the field."""
        products = 2 * self.y_size * self.group_c * self.r * self.s
        return {"fprop": products, "dgrad": products, "wgrad": products, "bgrad": self.y_size}[pass_]

    def bytes(self, pass_: str) -> int:
        """Least memory traffic of a pass: each operand read once, the result written once."""
        volumes = {
            "fprop": self.x_size + self.w_size + self.y_size,
            "dgrad": self.x_size + self.w_size + self.y_size,
            "wgrad": self.x_size + self.w_size + self.y_size,
            "bgrad": self.y_size + self.k,
        }
        return volumes[pass_] * self.element_bytes

    def __str__(self) -> str:
        words = [
            "conv2d",
            f"n{self.n}c{self.c}h{self.h}w{self.w}",
            f"k{self.k}r{self.r}s{self.s}",
            f"st{_pair_text((self.stride_h, self.stride_w))}",
            f"pd{_padding_text(self.padding)}",
        ]
        if (self.dilation_h, self.dilation_w) != (1, 1):
            words.append(f"dl{_pair_text((self.dilation_h, self.dilation_w))}")
        if self.groups != 1:
            words.append(f"g{self.groups}")
        return " ".join([*words, self.dtype, self.layout])


@dataclass(frozen=True)
class Pool2dProblem(_Fields):
    """One 2-D max-pooling with a window of ``r x s``: ``x[n,c,h,w]``, ``y[n,c,p,q]``.

    Raises:
        ValueError: naming the field, for a negative size, a window, stride or dilation below 1, an axis of
            2^47 or more with its padding, or a tensor of more than 2^63 - 1 bytes.
    """

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_bottom: int = 0
    pad_left: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    ceil_mode: bool = False
    dtype: str = "f32"
    layout: Layout = "nchw"

    def __post_init__(self) -> None:
        _check_sizes(
            self,
            ("r", "s", "stride_h", "stride_w", "dilation_h", "dilation_w"),
            ("n", "c", "h", "w", "pad_top", "pad_bottom", "pad_left", "pad_right"),
        )
        _check_extents(self)
        _check_volumes(self, {"x": self.x_size, "y": self.y_size})

    def _extent(self, extent: int, before: int, after: int, window: int, stride: int, dilation: int) -> int:
        if not self.ceil_mode:
            return output_extent(extent, before + after, window, stride, dilation)
        # A last, partial window counts if it starts inside the input or its leading padding.
        count = output_extent(extent, before + after + stride - 1, window, stride, dilation)
        return count - 1 if count > 0 and (count - 1) * stride >= extent + before else count

    @property
    def p(self) -> int:
        return self._extent(self.h, self.pad_top, self.pad_bottom, self.r, self.stride_h, self.dilation_h)

    @property
    def q(self) -> int:
        return self._extent(self.w, self.pad_left, self.pad_right, self.s, self.stride_w, self.dilation_w)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.p, self.q

    def flops(self, pass_: str) -> int:
        """Comparisons (forward) or additions (dgrad)."""
        comparisons = self.y_size * self.r * self.s
        return {
            "fprop": comparisons,
            "fprop_argmax": comparisons,
            "fprop_tap": comparisons,
            "dgrad": self.y_size,
            "dgrad_tap": self.y_size,
            "gather": 0,
            "gather_tap": 0,
        }[pass_]

    def bytes(self, pass_: str) -> int:
        """Least memory traffic of a pass; an argmax is 4 bytes, or 1 if it is a tap."""
        image, values = self.x_size * self.element_bytes, self.y_size * self.element_bytes
        argmax = self.y_size * (1 if pass_.endswith("_tap") else 4)
        return {
            "fprop": image + values,
            "fprop_argmax": image + values + argmax,
            "dgrad": image + values + argmax,
            "gather": values + values + argmax,
        }["fprop_argmax" if pass_ == "fprop_tap" else pass_.removesuffix("_tap")]

    def __str__(self) -> str:
        words = [
            "maxpool2d",
            f"n{self.n}c{self.c}h{self.h}w{self.w}",
            f"r{self.r}s{self.s}",
            f"st{_pair_text((self.stride_h, self.stride_w))}",
            f"pd{_padding_text(self.padding)}",
        ]
        if (self.dilation_h, self.dilation_w) != (1, 1):
            words.append(f"dl{_pair_text((self.dilation_h, self.dilation_w))}")
        if self.ceil_mode:
            words.append("ceil")
        return " ".join([*words, self.dtype, self.layout])


Problem = Conv2dProblem | Pool2dProblem


def _c_struct(descriptor: type) -> type[ctypes.Structure]:
    narrow = {"ceil_mode", "dtype", "layout"}
    members = [
        (field.name, ctypes.c_int32 if field.name in narrow else ctypes.c_int64)
        for field in fields(descriptor)
    ]
    return type(f"C{descriptor.__name__}", (ctypes.Structure,), {"_fields_": members})


Conv2dProblem._c_struct = _c_struct(Conv2dProblem)
Pool2dProblem._c_struct = _c_struct(Pool2dProblem)


_SIZES = re.compile(r"([a-z])(\d+)")
_ACCEPTED = (
    "'conv2d n8c64h56w56 k64r3s3 st1 pd1 [dl1] [g1] f32 nchw' or "
    "'maxpool2d n8c64h56w56 r3s3 st2 pd1 [dl1] [ceil] f32 nchw'"
)


def parse_problem(text: str) -> Problem:
    """The descriptor whose text form is ``text``. ``st1 pd0 f32 nchw`` may be left out.

    Raises:
        ValueError: naming the word that is not understood.
    """
    words = text.split()
    kind = words[0] if words else ""
    if kind not in ("conv2d", "maxpool2d"):
        raise ValueError(f"problem {text!r} starts with {kind!r}; accepted: {_ACCEPTED}")
    values: dict[str, int | str | bool] = {}
    expected = set("nchwkrs") if kind == "conv2d" else set("nchwrs")

    def put(word: str, **named: int | str | bool) -> None:
        for name, value in named.items():
            if name in values:
                raise ValueError(f"problem {text!r}: {word!r} gives {name} a second time")
            values[name] = value

    for word in words[1:]:
        try:
            if word in DTYPES:
                put(word, dtype=word)
            elif word in LAYOUTS:
                put(word, layout=word)
            elif word.startswith("st"):
                stride = _parse_pair(word[2:])
                put(word, stride_h=stride[0], stride_w=stride[1])
            elif word.startswith("dl"):
                dilation = _parse_pair(word[2:])
                put(word, dilation_h=dilation[0], dilation_w=dilation[1])
            elif word.startswith("pd"):
                top, bottom, left, right = _parse_padding(word[2:])
                put(word, pad_top=top, pad_bottom=bottom, pad_left=left, pad_right=right)
            elif kind == "conv2d" and re.fullmatch(r"g\d+", word):
                put(word, groups=int(word[1:]))
            elif kind == "maxpool2d" and word == "ceil":
                put(word, ceil_mode=True)
            elif re.fullmatch(rf"(?:[{''.join(sorted(expected))}]\d+)+", word):
                for name, value in _SIZES.findall(word):
                    put(word, **{name: int(value)})
            else:
                raise ValueError
        except ValueError as error:
            if str(error).startswith("problem"):
                raise
            raise ValueError(f"problem {text!r}: {word!r} is not understood; accepted: {_ACCEPTED}") from None
    missing = sorted(expected - set(values))
    if missing:
        raise ValueError(f"problem {text!r}: no {', '.join(missing)}; accepted: {_ACCEPTED}")
    make = Conv2dProblem if kind == "conv2d" else Pool2dProblem
    return make(**values)  # type: ignore[arg-type]

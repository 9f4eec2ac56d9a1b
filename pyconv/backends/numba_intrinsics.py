"""What a rewritten Numba kernel is made of on the emulator: arrays whose every access is checked, and CUDA's
names.

Each is an intrinsic, a few lines of LLVM that call the emulator's runtime (``kernels/emulator/numba.cpp``).
``place`` is where in the kernel's source it stands.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.errors import NumbaTypeError
from numba.extending import intrinsic

_INT32, _INT64, _BYTES, _VOID = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer(), ir.VoidType()

#: dtype of a view -> the type of an element in memory. Half precision is bits here: Numba has it on GPUs
#: only.
ELEMENTS = {
    "f32": types.float32,
    "f64": types.float64,
    "f16": types.uint16,
    "i32": types.int32,
}


class Array(NamedTuple):
    """An array in global or shared memory."""

    data: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


class LocalArray(NamedTuple):
    """An array of one thread, on its stack."""

    data: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def link(runtime: ctypes.CDLL) -> None:
    """Lets compiled kernels find the runtime's functions."""
    for name in (
        "index", "read", "write", "outside", "widen", "narrow", "shared", "syncthreads", "syncwarp",
        "shuffle_xor",
    ):  # fmt: skip
        function = getattr(runtime, f"pyconv_numba_{name}")
        binding.add_symbol(f"pyconv_numba_{name}", ctypes.cast(function, ctypes.c_void_p).value)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, kind, f"pyconv_numba_{name}")
    return builder.call(function, arguments)


def _array(kind: type, element: Any, ndim: int) -> Any:
    axes = types.UniTuple(types.int64, ndim)
    return types.NamedTuple((types.CPointer(element), axes, axes), kind)


def _value(element: Any) -> Any:
    """What an element is once it is loaded."""
    return types.float32 if element == types.uint16 else element


# ---- Arguments: words of 8 bytes, as pyconv/backends/numba_emulator.py packs them


@cache
def array_argument(dtype: str, ndim: int) -> Callable[..., Any]:
    """``argument(parameters, i)``: parameter ``i`` as an array."""

    @intrinsic  # type: ignore[untyped-decorator]
    def argument(typing: Any, parameters: Any, i: Any) -> Any:
        kind = _array(Array, ELEMENTS[dtype], ndim)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            words = _words(context, builder, signature, arguments, 1 + 2 * ndim)
            data = builder.inttoptr(words[0], context.get_value_type(kind.types[0]))
            shape = context.make_tuple(builder, kind.types[1], words[1 : 1 + ndim])
            strides = context.make_tuple(builder, kind.types[2], words[1 + ndim :])
            return context.make_tuple(builder, kind, [data, shape, strides])

        return kind(parameters, i), generate

    return argument  # type: ignore[no-any-return]


@cache
def tuple_argument(named: type) -> Callable[..., Any]:
    """``argument(parameters, i)``: parameter ``i`` as a named tuple of integers."""
    fields = len(named._fields)  # type: ignore[attr-defined]

    @intrinsic  # type: ignore[untyped-decorator]
    def argument(typing: Any, parameters: Any, i: Any) -> Any:
        kind = types.NamedUniTuple(types.int64, fields, named)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            words = _words(context, builder, signature, arguments, fields)
            return context.make_tuple(builder, kind, words)

        return kind(parameters, i), generate

    return argument  # type: ignore[no-any-return]


@intrinsic  # type: ignore[untyped-decorator]
def integer_argument(typing: Any, parameters: Any, i: Any) -> Any:
    """Parameter ``i`` as an integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _words(context, builder, signature, arguments, 1)[0]

    return types.int64(parameters, i), generate


def _words(context: Any, builder: Any, signature: Any, arguments: Any, count: int) -> list[Any]:
    parameters, i = arguments
    i = context.cast(builder, i, signature.args[1], types.int64)
    begin = builder.load(builder.gep(parameters, [i]))
    return [builder.load(builder.gep(begin, [_INT64(word)])) for word in range(count)]


# ---- Accesses


def _indices(context: Any, builder: Any, kind: Any, index: Any) -> list[Any]:
    """The index of a subscript, or a shape, one by one as int64."""
    if not isinstance(kind, types.BaseTuple):
        return [context.cast(builder, index, kind, types.int64)]
    kinds: Any = kind
    parts = cgutils.unpack_tuple(builder, index, len(kind))
    return [
        context.cast(builder, part, each, types.int64) for part, each in zip(parts, kinds.types, strict=True)
    ]


def _element(context: Any, builder: Any, array: Any, kinds: Any, index: Any, place: Any) -> Any:
    """The address of an element that there is."""
    data = builder.extract_value(array, 0)
    shape = cgutils.unpack_tuple(builder, builder.extract_value(array, 1))
    strides = cgutils.unpack_tuple(builder, builder.extract_value(array, 2))
    offset = _INT64(0)
    for axis, at in enumerate(_indices(context, builder, kinds[1], index)):
        is_outside = builder.icmp_unsigned(">=", at, shape[axis])  # a negative one is very large
        with builder.if_then(is_outside, likely=False):
            _call(builder, "outside", _VOID, at, _INT64(axis), shape[axis], place)
        offset = builder.add(offset, builder.mul(at, strides[axis]))
    return builder.gep(data, [offset])


def _is_array(kind: Any, index: Any) -> bool:
    """Whether a subscript is one of our arrays with as many indices as it has axes."""
    if getattr(kind, "instance_class", None) not in (Array, LocalArray):
        return False
    return len(kind.types[1]) == (len(index) if isinstance(index, types.BaseTuple) else 1)


def _hook(context: Any, builder: Any, name: str, kind: Any, at: Any, place: Any) -> None:
    if kind.instance_class is Array:
        size = context.get_abi_sizeof(context.get_data_type(kind.types[0].dtype))
        _call(builder, name, _VOID, builder.bitcast(at, _BYTES), _INT64(size), place)


def _make_load(checked: bool) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def load(typing: Any, array: Any, index: Any, place: Any) -> Any:
        if not _is_array(array, index):
            return None
        element = array.types[0].dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = context.cast(builder, arguments[2], signature.args[2], types.int64)
            at = _element(context, builder, arguments[0], signature.args, arguments[1], place)
            if checked:
                _hook(context, builder, "read", array, at, place)
            value = builder.load(at)
            return _call(builder, "widen", ir.FloatType(), value) if element == types.uint16 else value

        return _value(element)(array, index, place), generate

    return load


def _make_store(checked: bool) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def store(typing: Any, array: Any, index: Any, value: Any, place: Any) -> Any:
        if not _is_array(array, index):
            return None
        element = array.types[0].dtype

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = context.cast(builder, arguments[3], signature.args[3], types.int64)
            at = _element(context, builder, arguments[0], signature.args, arguments[1], place)
            value = context.cast(builder, arguments[2], signature.args[2], _value(element))
            if element == types.uint16:
                value = _call(builder, "narrow", ir.IntType(16), value)
            if checked:
                _hook(context, builder, "write", array, at, place)
            builder.store(value, at)
            return context.get_dummy_value()

        return types.void(array, index, value, place), generate

    return store


load, store = _make_load(True), _make_store(True)
plain_load, plain_store = _make_load(False), _make_store(False)


# ---- Arrays that a kernel makes


def _made(context: Any, builder: Any, kind: Any, data: Any, shape: list[Any]) -> Any:
    strides = [_INT64(1)] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = builder.mul(strides[axis + 1], shape[axis + 1])
    data = builder.bitcast(data, context.get_value_type(kind.types[0]))
    parts = [context.make_tuple(builder, kind.types[1], part) for part in (shape, strides)]
    return context.make_tuple(builder, kind, [data, *parts])


def _kind_of(made: type, shape: Any, dtype: Any) -> Any:
    kinds: Any = shape
    extents = kinds.types if isinstance(shape, types.BaseTuple) else [shape]
    if not all(isinstance(extent, types.Literal) for extent in extents):  # numba.cuda refuses it too
        raise NumbaTypeError("the shape of an array that a kernel makes must be of constants")
    ndim = len(shape) if isinstance(shape, types.BaseTuple) else 1
    element = dtype.instance_type if isinstance(dtype, types.NumberClass) else dtype.dtype
    return _array(made, element, ndim)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def shared_array(typing: Any, shape: Any, dtype: Any, name: Any, place: Any) -> Any:
    """``cuda.shared.array``: poisoned when the block starts."""
    kind = _kind_of(Array, shape, dtype)
    text = getattr(name, "literal_value", "")  # Numba asks again without literals, if something is wrong

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        extents = _indices(context, builder, signature.args[0], arguments[0])
        size = _INT64(context.get_abi_sizeof(context.get_data_type(kind.types[0].dtype)))
        for extent in extents:
            size = builder.mul(size, extent)
        label = context.insert_const_string(builder.module, text)
        place = context.cast(builder, arguments[3], signature.args[3], types.int64)
        data = _call(builder, "shared", _BYTES, size, label, place)
        return _made(context, builder, kind, data, extents)

    return kind(shape, dtype, name, place), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def local_array(typing: Any, shape: Any, dtype: Any) -> Any:
    """``cuda.local.array``: full of 0xFF at first."""
    kind = _kind_of(LocalArray, shape, dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        extents = _indices(context, builder, signature.args[0], arguments[0])
        size = _INT64(context.get_abi_sizeof(context.get_data_type(kind.types[0].dtype)))
        for extent in extents:
            size = builder.mul(size, extent)
        data = builder.alloca(ir.IntType(8), size)
        data.align = 16
        cgutils.memset(builder, data, size, 0xFF)
        return _made(context, builder, kind, data, extents)

    return kind(shape, dtype), generate


# ---- Indices, barriers, warps


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def index(typing: Any, which: Any, axis: Any) -> Any:
    """``threadIdx`` (0), ``blockIdx``, ``blockDim``, ``gridDim`` (3) of one axis."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "index", _INT64, _INT32(which.literal_value), _INT32(axis.literal_value))

    return types.int64(which, axis), generate


def _barrier(name: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def barrier(typing: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _call(builder, name, _VOID, context.cast(builder, arguments[0], place, types.int64))
            return context.get_dummy_value()

        return types.void(place), generate

    return barrier


syncthreads, syncwarp = _barrier("syncthreads"), _barrier("syncwarp")


@intrinsic  # type: ignore[untyped-decorator]
def shfl_xor_sync(typing: Any, mask: Any, value: Any, lane_mask: Any) -> Any:
    """``cuda.shfl_xor_sync``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integers = (context.cast(builder, arguments[i], signature.args[i], types.int64) for i in (0, 2))
        at = cgutils.alloca_once_value(builder, arguments[1])
        size = _INT64(context.get_abi_sizeof(context.get_data_type(value)))
        _call(builder, "shuffle_xor", _VOID, builder.bitcast(at, _BYTES), size, *integers)
        return builder.load(at)

    return value(mask, value, lane_mask), generate

"""Rewrites a Numba kernel for the emulator: the same statements, with every access and barrier a call.

    part += Sum(x[n, c, h, w])       ->   part += Sum(load(x, (n, c, h, w), 1048618))
    cuda.syncthreads()               ->   syncthreads(1048650)
    tile = cuda.shared.array(32, Sum)->   tile = shared_array(32, Sum, 'tile', 1048625)

The numbers are places: of the file and the line. What the emulator does not know of ``numba.cuda`` is
refused, in a message with the line.
"""

from __future__ import annotations

import ast
import zlib
from typing import Any

from pyconv.backends.emulator_findings import EmulatorError

_LINE_BITS = 16
_FILES = 1 << 11  # places lie below 2^28

_NAMES = ("threadIdx", "blockIdx", "blockDim", "gridDim")
_known: dict[int, str] = {}  # number of a file -> its name, of what was rewritten in this process


def place(source: str, line: int) -> int:
    """The number of a line of a source, the same in every process: compiled kernels are kept on disk."""
    return (1 + zlib.crc32(source.encode()) % _FILES) << _LINE_BITS | line


def line_of(number: int) -> str:
    """``file:line`` of a place."""
    return f"{_known.get(number >> _LINE_BITS, 'an unknown file')}:{number & (1 << _LINE_BITS) - 1}"


def imports(text: str) -> list[str]:
    """The modules of other Numba kernels that a source imports from."""
    return [
        node.module
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and node.module and node.module.endswith("_numba")
    ]


def rewritten(source: str, text: str, modules: dict[str, str], checked: bool) -> str:
    """The source for the emulator.

    Args:
        source: Its name, as findings are to call it.
        modules: For each of :func:`imports`, the module that takes its place.
        checked: Whether accesses are checked for races, and not for bounds only.

    Raises:
        EmulatorError: if there is something of ``numba.cuda`` in it that the emulator does not know.
    """
    number = place(source, 0) >> _LINE_BITS
    if _known.setdefault(number, source) != source:
        raise EmulatorError(f"{source} and {_known[number]} have the same number; rename one of them")
    tree = _Rewriter(source, modules).visit(ast.parse(text, source))
    kinds = "load, store" if checked else "plain_load as load, plain_store as store"
    names = f"{kinds}, index, local_array, shared_array, shfl_xor_sync, syncthreads, syncwarp"
    head = f"from numba import njit\nfrom pyconv.backends.numba_intrinsics import {names}\n"
    return head + ast.unparse(ast.fix_missing_locations(tree)) + "\n"


class _Rewriter(ast.NodeTransformer):
    def __init__(self, source: str, modules: dict[str, str]) -> None:
        self.source = source
        self.modules = modules
        self.lines_with_shared: set[int] = set()

    def refuse(self, node: ast.AST, what: str) -> EmulatorError:
        return EmulatorError(f"{self.source}:{node.lineno}: {what}")  # type: ignore[attr-defined]

    def place(self, node: ast.AST) -> ast.expr:
        return ast.Constant(place(self.source, node.lineno))  # type: ignore[attr-defined]

    def call(self, name: str, node: ast.AST, *arguments: Any, placed: bool = True) -> ast.Call:
        every = [*arguments, self.place(node)] if placed else list(arguments)
        return ast.copy_location(ast.Call(ast.Name(name, ast.Load()), every, []), node)

    # ---- Imports and decorators

    def visit_ImportFrom(self, node: ast.ImportFrom) -> Any:
        if node.module == "numba":
            node.names = [name for name in node.names if name.name != "cuda"]
            return node if node.names else None
        if node.module in self.modules:
            node.module = self.modules[node.module]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        for i, decorator in enumerate(node.decorator_list):
            if ast.unparse(decorator).startswith("cuda.jit"):
                options = "njit(error_model='numpy', no_cpython_wrapper=True, no_cfunc_wrapper=True)"
                node.decorator_list[i] = ast.parse(options, mode="eval").body
        return self.generic_visit(node)

    # ---- Accesses

    def index(self, node: ast.Subscript) -> ast.expr:
        if isinstance(node.slice, ast.Slice) or any(
            isinstance(part, ast.Slice) for part in ast.walk(node.slice)
        ):
            raise self.refuse(node, "a slice of an array; the emulator knows single elements")
        return self.visit(node.slice)  # type: ignore[no-any-return]

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        if not isinstance(node.value, ast.Name):  # x.shape[0]
            return self.generic_visit(node)
        assert isinstance(node.ctx, ast.Load)
        return self.call("load", node, node.value, self.index(node))

    def store(self, target: ast.Subscript, value: ast.expr) -> ast.stmt:
        array = ast.Name(ast.unparse(target.value), ast.Load())
        call = self.call("store", target, array, self.index(target), value)
        return ast.copy_location(ast.Expr(call), target)

    def visit_Assign(self, node: ast.Assign) -> Any:
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "cuda.shared.array":
            return self.shared(node)
        node.value = self.visit(node.value)
        (target,) = node.targets
        if isinstance(target, ast.Subscript):
            return self.store(target, node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        node.value = self.visit(node.value)
        if not isinstance(node.target, ast.Subscript):
            return node
        array = ast.Name(ast.unparse(node.target.value), ast.Load())
        old = self.call("load", node.target, array, self.index(node.target))
        return self.store(node.target, ast.copy_location(ast.BinOp(old, node.op, node.value), node))

    # ---- numba.cuda

    def shared(self, node: ast.Assign) -> Any:
        assert isinstance(node.value, ast.Call)
        (target,) = node.targets
        if node.lineno in self.lines_with_shared:  # Numba's simulator takes them for one
            raise self.refuse(node, "a second shared array on one line")
        self.lines_with_shared.add(node.lineno)
        shape, dtype = node.value.args
        name = ast.Constant(ast.unparse(target))
        node.value = self.call("shared_array", node, shape, dtype, name)
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        name = ast.unparse(node.func)
        if not name.startswith("cuda."):
            return self.generic_visit(node)
        arguments = [self.visit(argument) for argument in node.args]
        if name == "cuda.local.array":
            return self.call("local_array", node, *arguments, placed=False)
        if name in ("cuda.syncthreads", "cuda.syncwarp"):
            return self.call(name.removeprefix("cuda."), node)
        if name == "cuda.shfl_xor_sync":
            return self.call("shfl_xor_sync", node, *arguments, placed=False)
        if name == "cuda.grid" and ast.unparse(node.args[0]) == "1":
            text = "index(1, 0) * index(2, 0) + index(0, 0)"
            return ast.copy_location(ast.parse(text, mode="eval").body, node)
        raise self.refuse(node, f"{name}, which the emulator does not know")

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        parts = ast.unparse(node).split(".")
        if parts[0] != "cuda":
            return self.generic_visit(node)
        if len(parts) == 3 and parts[1] in _NAMES:
            which, axis = ast.Constant(_NAMES.index(parts[1])), ast.Constant("xyz".index(parts[2]))
            return self.call("index", node, which, axis, placed=False)
        raise self.refuse(node, f"{ast.unparse(node)}, which the emulator does not know")

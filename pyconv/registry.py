"""The table of kernels: one line per kernel, and nothing outside the table exists.

A line says what a kernel computes, for which problems, what it promises and where it is proved. The tests,
the benchmarks, the kernel table of the README, ``pyconv kernels``, ``pyconv explain`` and the selection all
read this table and nothing else. The lines stand beside the kernels, in ``kernels/<operation>/table.py``;
``kernels/README.md`` shows how to add one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from pyconv.problem import CONV2D_PASSES, DTYPES, LAYOUTS, POOL2D_PASSES, Problem

if TYPE_CHECKING:
    from pyconv.backends.program import MakeProgram

PASSES: dict[str, tuple[str, ...]] = {"conv2d": CONV2D_PASSES, "maxpool2d": POOL2D_PASSES}
BACKENDS = ("cpu", "cuda", "numba", "numba-cpu", "aten")

#: The packages that hold a ``table.py``.
_TABLES = ("pyconv.kernels.conv2d.table", "pyconv.kernels.maxpool2d.table")

#: A stated bound on the error: ``1e-3 (tf32)``.
_BOUND = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)? \(.+\)")


def every_problem(problem: Problem) -> str | None:
    """The ``supports`` of a kernel with no restriction beyond its dtypes and layouts."""
    return None


@dataclass(frozen=True)
class Kernel:
    """One line of the table.

    Attributes:
        operation, pass_, algorithm, backend: What it is; together they are its :attr:`id`.
        dtypes, layouts: Names of :mod:`pyconv.problem` it takes.
        source: The file that holds it, under ``kernels/``; empty for ``aten``.
        restriction: ``None`` for a problem it can do, else the reason why not. :meth:`supports` is the
            whole answer, dtype and layout included.
        deterministic: Equal bits from run to run and for any number of threads.
        batch_invariant: The bits of one sample do not depend on the others or on their number.
        exact_integers: Exact when every product and partial sum is a representable integer.
        nonfinite: ``local``: a NaN or infinity reaches only outputs whose sum has that element, padding
            included (``0 * inf`` is never formed); ``padding``: zero padding is multiplied, so an infinite
            weight over padding gives NaN; ``tile``: it may reach the outputs of its tile.
        accuracy: ``standard``: relative L2 error against float64 at most twice torch's own, and one rounding.
            A kernel that trades accuracy for speed states the relative L2 error it is held to instead, and
            why: ``1e-3 (tf32)``. Such a line is of one dtype. See :attr:`error_bound`.
        algebra: ``direct``: it multiplies the elements themselves, as the definition does; ``winograd``: sums
            and differences of them; ``split``: parts of them, as float32 by three products of TF32. Rounding
            and infinities are then of another kind, and precision ``exact`` takes ``direct`` only
            (:func:`pyconv.switches.set_algorithm_precision`).
        on_request: Selection takes it only where it is asked for by name, however fast it is expected to be.
        proved: Where the battery has passed on it: ``cpu``, ``emulator``, or a GPU's name.
        problems: Problems that the battery adds for this line to the shared list: the edges of its own tiles.
            Text forms without dtype and layout.
        program: For ``cuda`` and ``numba``, the launches of a problem (:mod:`pyconv.backends.program`).
    """

    operation: Literal["conv2d", "maxpool2d"]
    pass_: str
    algorithm: str
    backend: str
    dtypes: tuple[str, ...]
    layouts: tuple[str, ...] = LAYOUTS
    source: str = ""
    restriction: Callable[[Problem], str | None] = every_problem
    deterministic: bool = True
    batch_invariant: bool = False
    exact_integers: bool = True
    nonfinite: Literal["local", "padding", "tile"] = "local"
    accuracy: str = "standard"
    algebra: Literal["direct", "winograd", "split"] = "direct"
    on_request: bool = False
    proved: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    program: MakeProgram | None = None

    def __post_init__(self) -> None:
        for name, value, accepted in (
            ("operation", self.operation, tuple(PASSES)),
            ("pass_", self.pass_, PASSES.get(self.operation, ())),
            ("backend", self.backend, BACKENDS),
            ("nonfinite", self.nonfinite, ("local", "padding", "tile")),
            ("algebra", self.algebra, ("direct", "winograd", "split")),
        ):
            if value not in accepted:
                raise ValueError(f"Kernel {self.id}: {name}={value!r}; accepted: {', '.join(accepted)}")
        for name, values, known in (("dtypes", self.dtypes, DTYPES), ("layouts", self.layouts, LAYOUTS)):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise ValueError(f"Kernel {self.id}: {name}={values!r}; accepted: {', '.join(known)}")
        if self.accuracy != "standard" and not _BOUND.fullmatch(self.accuracy):
            raise ValueError(
                f"Kernel {self.id}: accuracy={self.accuracy!r}; accepted: 'standard', or a relative L2 error "
                "and its reason, as '1e-3 (tf32)'"
            )
        if self.accuracy != "standard" and len(self.dtypes) > 1:
            raise ValueError(
                f"Kernel {self.id}: accuracy={self.accuracy!r} is a bound for one dtype, and dtypes is "
                f"{self.dtypes!r}; give each its line"
            )
        for text in self.problems:
            if not text.startswith(f"{self.operation} "):
                raise ValueError(f"Kernel {self.id}: problem {text!r} is not one of {self.operation}")

    @property
    def error_bound(self) -> float | None:
        """The relative L2 error that this line is held to, or ``None`` where its accuracy is standard."""
        return None if self.accuracy == "standard" else float(self.accuracy.split()[0])

    @property
    def name(self) -> str:
        """``operation.pass.algorithm``: the ``kernel`` argument of the registered operators."""
        return f"{self.operation}.{self.pass_}.{self.algorithm}"

    @property
    def id(self) -> str:
        """``name@backend``: unique in the table."""
        return f"{self.name}@{self.backend}"

    def supports(self, problem: Problem) -> str | None:
        """``None`` if this kernel can do the problem, else the reason why not."""
        if problem.dtype not in self.dtypes:
            return f"dtype {problem.dtype} (takes {', '.join(self.dtypes)})"
        if problem.layout not in self.layouts:
            return f"layout {problem.layout} (takes {', '.join(self.layouts)})"
        return self.restriction(problem)


_table: dict[str, Kernel] = {}


def register(kernel: Kernel) -> Kernel:
    """Adds one line. Raises ``ValueError`` if its id is taken."""
    if kernel.id in _table:
        raise ValueError(f"kernel {kernel.id} is in the table already")
    _table[kernel.id] = kernel
    return kernel


def unregister(kernel: Kernel) -> None:
    """Takes a line out again (tests of the judge add broken kernels and remove them)."""
    del _table[kernel.id]


@cache
def _load_tables() -> None:
    for module in _TABLES:
        for kernel in importlib.import_module(module).KERNELS:
            register(kernel)


def kernels(operation: str | None = None, pass_: str | None = None) -> list[Kernel]:
    """The lines of the table in order, all or those of one operation and pass."""
    _load_tables()
    return [
        kernel
        for kernel in _table.values()
        if operation in (None, kernel.operation) and pass_ in (None, kernel.pass_)
    ]


def find(kernel_id: str) -> Kernel:
    """The line of that id. Raises ``KeyError`` naming the nearest ones."""
    _load_tables()
    if kernel_id not in _table:
        import difflib

        near = difflib.get_close_matches(kernel_id, _table, n=3, cutoff=0.4)
        raise KeyError(f"no kernel {kernel_id!r} in the table; nearest: {', '.join(near) or 'none'}")
    return _table[kernel_id]

"""Launches and table lines of ``fprop_numba.py``, ``dgrad_numba.py`` and ``gather_numba.py``."""

from functools import partial

from pyconv.kernels.maxpool2d.restrictions import place_fits_int32

from pyconv.backends.numba_program import SUMS, tensor
from pyconv.backends.program import Program, Step, blocks
from pyconv.problem import Problem
from pyconv.registry import Kernel

#: Threads of a block: 8 warps. There is nothing to share in a block; any multiple of a warp would do.
THREADS = 256

#: pass -> source, and the operands and results of its kernel; the last but an argmax has the threads'
#: elements.
_PASSES = {
    "fprop": ("fprop_numba.py", ("x", "y")),
    "fprop_argmax": ("fprop_numba.py", ("x", "y", "argmax")),
    "dgrad": ("dgrad_numba.py", ("dy", "argmax", "dx")),
    "gather": ("gather_numba.py", ("x", "argmax", "y")),
}


def program(problem: Problem, pass_: str) -> Program:
    source, operands = _PASSES[pass_]
    elements = problem.x_size if pass_ == "dgrad" else problem.y_size
    step = Step(
        f"maxpool2d/{source}",
        kernel=f"{pass_}({SUMS[problem.dtype]})",
        grid=(blocks(elements, THREADS), 1, 1),
        block=(THREADS, 1, 1),
        arguments=(problem, int(problem.layout == "nhwc"), *(tensor(name, problem) for name in operands)),
    )
    return Program((step,))


KERNELS = [
    Kernel(
        "maxpool2d",
        pass_,
        "direct",
        "numba",
        ("f32", "f64", "f16"),
        source=f"maxpool2d/{source}",
        restriction=place_fits_int32,
        program=partial(program, pass_=pass_),
        batch_invariant=True,
        proved=("emulator",),
    )
    for pass_, (source, _) in _PASSES.items()
]

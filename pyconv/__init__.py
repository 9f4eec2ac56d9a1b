"""Convolution and max-pooling written by hand, as drop-in PyTorch operators. See README.md."""

from __future__ import annotations

import pyconv._checkout  # noqa: F401
from pyconv import functional, nn
from pyconv._version import __version__
from pyconv.functional import conv2d, max_pool2d
from pyconv.problem import Conv2dProblem, Pool2dProblem, parse_problem
from pyconv.selection import explain, use
from pyconv.switches import (
    algorithm_precision,
    get_algorithm_precision,
    get_workspace_limit,
    set_algorithm_precision,
    set_workspace_limit,
)

__all__ = [
    "Conv2dProblem",
    "Pool2dProblem",
    "__version__",
    "algorithm_precision",
    "conv2d",
    "explain",
    "functional",
    "get_algorithm_precision",
    "get_workspace_limit",
    "max_pool2d",
    "nn",
    "parse_problem",
    "set_algorithm_precision",
    "set_workspace_limit",
    "use",
]

"""The registered operators ``torch.ops.pyconv.*``: schemas and fakes, defined once.

Every backend implements these schemas: the CPU in ``kernels/bindings.cpp`` through torch's stable ABI. The
``kernel`` argument names the table line to run; :mod:`pyconv.selection` is the one place that chooses it.
``channels_last`` is the layout of the problem and so of every tensor the operator returns; operands in
another layout are copied into it.

Padding is always four numbers, ``top, bottom, left, right``.
"""

from __future__ import annotations

import torch

_PROBLEM = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"

SCHEMAS = {
    "conv2d_fprop": f"(Tensor x, Tensor w, Tensor? bias, {_PROBLEM}, SymInt groups, bool channels_last,"
    " str kernel) -> Tensor",
    "conv2d_dgrad": f"(Tensor dy, Tensor w, SymInt[] input_size, {_PROBLEM}, SymInt groups, bool channels_last,"
    " str kernel) -> Tensor",
    "conv2d_wgrad": f"(Tensor x, Tensor dy, SymInt[] filter_size, {_PROBLEM}, SymInt groups, bool channels_last,"
    " str kernel) -> Tensor",
    "conv2d_bgrad": "(Tensor dy, bool channels_last, str kernel) -> Tensor",
    "max_pool2d": f"(Tensor x, SymInt[] window, {_PROBLEM}, bool ceil_mode, bool channels_last,"
    " str kernel) -> Tensor",
    "max_pool2d_argmax": f"(Tensor x, SymInt[] window, {_PROBLEM}, bool ceil_mode, bool channels_last,"
    " str kernel) -> (Tensor, Tensor)",
    "max_pool2d_dgrad": f"(Tensor dy, Tensor argmax, SymInt[] input_size, SymInt[] window, {_PROBLEM},"
    " bool ceil_mode, bool channels_last, str kernel) -> Tensor",
    "max_pool2d_gather": f"(Tensor x, Tensor argmax, SymInt[] window, {_PROBLEM}, bool ceil_mode,"
    " bool channels_last, str kernel) -> Tensor",
}

library = torch.library.Library("pyconv", "DEF")
for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))

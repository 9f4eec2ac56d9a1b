"""Autograd, once for every backend.

A convolution is one trilinear form in x, w and (the gradient of) y. fprop, dgrad and wgrad are its three
gradients, each linear in two of them and returning the third::

    y = fprop(x, w)      dx = dgrad(dy, w)      dw = wgrad(x, dy)

so the derivative of any one of them is the other two, and three ``autograd.Function``s closed under
differentiation give every order of derivative, in reverse and in forward mode. Max-pooling is a gather by
``argmax``; its derivative is the scatter by the same ``argmax``, whose derivative is that gather again.

The Functions stand on a *form*: something that runs the passes of one problem, differentiably.
:class:`Eager` runs the kernels of a plan directly; :class:`Registered` calls the registered operators, which
is what torch.func, torch.compile, fake tensors and other modes see. Both use the same Functions, so there is
one backward code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import Function

from pyconv import ops
from pyconv.plan import Plan
from pyconv.problem import Conv2dProblem


class Form(Protocol):
    """Runs the passes of one problem; the results are differentiable."""

    def __call__(self, pass_: str, *tensors: Tensor | None) -> Any: ...


# ---- The Functions --------------------------------------------------------------------------------------

#: Pass -> the slots of its two operands, and the slot it returns.
_SLOTS = {"fprop": ("x", "w", "y"), "dgrad": ("y", "w", "x"), "wgrad": ("x", "y", "w")}
#: Slot -> the pass that returns it.
_RETURNS = {slots[2]: pass_ for pass_, slots in _SLOTS.items()}


def _derivative(slot: str, known: tuple[str, str, str]) -> tuple[str, int, int]:
    """The pass that returns the form's gradient in ``slot``, and where its operands are in ``known``."""
    pass_ = _RETURNS[slot]
    first, second, _ = _SLOTS[pass_]
    return pass_, known.index(first), known.index(second)


def _operands(pass_: str, known: tuple[Any, ...], at: Sequence[int]) -> tuple[Tensor | None, ...]:
    operands = (known[at[0]], known[at[1]])
    return (*operands, None) if pass_ == "fprop" else operands  # fprop's third operand is the bias


def _named(function: type[Function], name: str) -> type[Function]:
    """Gives the Function, and the node that stands for it in a graph, the name people will see."""
    function.__name__ = function.__qualname__ = name
    function._backward_cls.__name__ = f"{name}Backward"
    return function


def _pass_function(pass_: str) -> type[Function]:
    first, second, out = _SLOTS[pass_]
    # In backward the operands and the gradient are known; in jvp the operands, one of them as a tangent.
    pass_a, *at_a = _derivative(first, (first, second, out))
    pass_b, *at_b = _derivative(second, (first, second, out))

    class Pass(Function):
        """``out = pass(a, b)``, plus a bias for fprop. ``run`` computes it without autograd."""

        @staticmethod
        def forward(
            ctx: Any, form: Form, run: Callable[..., Tensor], a: Tensor, b: Tensor, *bias: Any
        ) -> Any:
            ctx.form = form
            needs_a, needs_b = ctx.needs_input_grad[2:4]
            # The derivative in one operand needs the other one only.
            ctx.save_for_backward(a if needs_b else None, b if needs_a else None)
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(a, b)
            ctx.set_materialize_grads(False)
            result = run(a, b, *bias)
            ctx.shape = result.shape
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
            needs = ctx.needs_input_grad[2:]
            gradients: list[Tensor | None] = [None] * len(needs)
            if grad is not None:
                form = ctx.form
                known = (*ctx.saved_tensors, grad)
                if needs[0]:
                    gradients[0] = form(pass_a, *_operands(pass_a, known, at_a))
                if needs[1]:
                    gradients[1] = form(pass_b, *_operands(pass_b, known, at_b))
                if len(needs) > 2 and needs[2]:
                    gradients[2] = form("bgrad", grad)
            return None, None, *gradients

        @staticmethod
        def jvp(ctx: Any, _form: None, _run: None, da: Any, db: Any, *dbias: Any) -> Tensor:
            a, b = ctx.saved_tensors
            terms = []
            if da is not None:
                terms.append(ctx.form(pass_, *_operands(pass_, (da, b), (0, 1))))
            if db is not None:
                terms.append(ctx.form(pass_, *_operands(pass_, (a, db), (0, 1))))
            if dbias and dbias[0] is not None:
                terms.append(dbias[0].view(1, -1, 1, 1).expand(ctx.shape))
            return sum(terms[1:], start=terms[0])

    return _named(Pass, f"Conv2d{pass_.capitalize()}")


class _BiasGradient(Function):
    """``db[k] = sum over n, p, q of dy[n,k,p,q]``; its derivative is the broadcast."""

    @staticmethod
    def forward(ctx: Any, form: Form, run: Callable[..., Tensor], dy: Tensor) -> Tensor:
        ctx.form, ctx.shape = form, dy.shape
        return run(dy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, None, grad.view(1, -1, 1, 1).expand(ctx.shape)

    @staticmethod
    def jvp(ctx: Any, _form: None, _run: None, ddy: Tensor) -> Tensor:
        return ctx.form("bgrad", ddy)  # type: ignore[no-any-return]


def _max_pool_function(dgrad: str, gather: str) -> type[Function]:
    class MaxPool(Function):
        """``y, argmax = max_pool(x)``."""

        @staticmethod
        def forward(ctx: Any, form: Form, run: Callable[..., Any], x: Tensor) -> tuple[Tensor, Tensor]:
            y, argmax = run(x)
            ctx.form = form
            ctx.save_for_backward(argmax)
            ctx.save_for_forward(argmax)
            ctx.mark_non_differentiable(argmax)
            ctx.set_materialize_grads(False)
            return y, argmax

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
            (argmax,) = ctx.saved_tensors
            return None, None, None if grad is None else ctx.form(dgrad, grad, argmax)

        @staticmethod
        def jvp(ctx: Any, _form: None, _run: None, dx: Tensor) -> tuple[Tensor, None]:
            (argmax,) = ctx.saved_tensors
            return ctx.form(gather, dx, argmax), None

    return _named(MaxPool, "MaxPool2d")


def _linear_function(pass_: str, transpose: str) -> type[Function]:
    class ByArgmax(Function):
        """A map linear in its operand with argmax held fixed; its transpose is the other one."""

        @staticmethod
        def forward(ctx: Any, form: Form, run: Callable[..., Tensor], a: Tensor, argmax: Tensor) -> Tensor:
            ctx.form = form
            ctx.save_for_backward(argmax)
            if forward_ad._current_level >= 0:
                ctx.save_for_forward(argmax)
            return run(a, argmax)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            (argmax,) = ctx.saved_tensors
            return None, None, ctx.form(transpose, grad, argmax), None

        @staticmethod
        def jvp(ctx: Any, _form: None, _run: None, da: Tensor, _argmax: Any) -> Tensor:
            (argmax,) = ctx.saved_tensors
            return ctx.form(pass_, da, argmax)  # type: ignore[no-any-return]

    return _named(ByArgmax, f"MaxPool2d{pass_.removesuffix('_tap').capitalize()}")


def _single_level(function: type[Function]) -> Callable[..., Any]:
    # Function.apply's Python layer inspects signatures and looks for functorch levels at every call. The
    # eager path has no such level, and the registered path is below them: both use the C-level apply.
    return super(Function, function).apply  # type: ignore[misc]


CONV2D_FUNCTIONS = {pass_: _single_level(_pass_function(pass_)) for pass_ in _SLOTS}
CONV2D_FUNCTIONS["bgrad"] = _single_level(_BiasGradient)
POOL2D_FUNCTIONS = {
    "fprop_argmax": _single_level(_max_pool_function("dgrad", "gather")),
    "dgrad": _single_level(_linear_function("dgrad", "gather")),
    "gather": _single_level(_linear_function("gather", "dgrad")),
    "fprop_tap": _single_level(_max_pool_function("dgrad_tap", "gather_tap")),
    "dgrad_tap": _single_level(_linear_function("dgrad_tap", "gather_tap")),
    "gather_tap": _single_level(_linear_function("gather_tap", "dgrad_tap")),
}


_is_grad_enabled = torch.is_grad_enabled


def is_differentiated(*tensors: Any) -> bool:
    """Whether a call on these tensors must be recorded, in reverse or in forward mode."""
    if _is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return forward_ad._current_level >= 0


_FORWARD = ("fprop", "fprop_argmax", "fprop_tap")
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_batched = torch._C._functorch.is_legacy_batchedtensor


# ---- Eager: the kernels of a plan ------------------------------------------------------------------------


class Eager:
    """The form over a plan's kernels, for plain tensors and no active mode."""

    __slots__ = ("_functions", "_registered", "_runs", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._runs: dict[str, Callable[..., Any]] = {}
        problem = plan.problem
        where = (
            (problem.stride_h, problem.stride_w),
            problem.padding,
            (problem.dilation_h, problem.dilation_w),
        )
        channels_last = problem.layout == "nhwc"
        size = (problem.h, problem.w)
        self._registered: Form
        if isinstance(problem, Conv2dProblem):
            self._functions = CONV2D_FUNCTIONS
            rest = (*where, problem.groups, channels_last)
            self._registered = Conv2dRegistered(size, (problem.r, problem.s), rest)
        else:
            self._functions = POOL2D_FUNCTIONS
            window = ((problem.r, problem.s), *where, problem.ceil_mode, channels_last)
            self._registered = Pool2dRegistered(size, window)

    def __call__(self, pass_: str, *tensors: Tensor | None) -> Any:
        if pass_ not in _FORWARD:
            # A backward may meet what its forward did not: a mode (fake tensors, counters, checkpointing), or
            # the batch of autograd.grad(..., is_grads_batched=True) in the disguise of a tensor.
            if _dispatch_modes():
                return self._registered(pass_, *tensors)
            for tensor in tensors:
                if _is_batched(tensor):  # type: ignore[arg-type]
                    return self._registered(pass_, *tensors)
        if not is_differentiated(*tensors):
            return self.plan.launch(pass_, *tensors)
        run = self._runs.get(pass_)
        if run is None:
            launch = self.plan.launch
            run = self._runs[pass_] = lambda *operands: launch(pass_, *operands)
        return self._functions[pass_](self, run, *tensors)


# ---- Registered: the operators ---------------------------------------------------------------------------


class Conv2dRegistered:
    """The form over ``torch.ops.pyconv.conv2d_*.auto``. Sizes may be symbolic."""

    def __init__(self, input_size: Any, filter_size: Any, rest: tuple[Any, ...]) -> None:
        self.input_size, self.filter_size, self.rest = input_size, filter_size, rest

    def __call__(self, pass_: str, *tensors: Tensor | None) -> Any:
        if pass_ == "fprop":
            return torch.ops.pyconv.conv2d_fprop.auto(*tensors, *self.rest)
        if pass_ == "dgrad":
            return torch.ops.pyconv.conv2d_dgrad.auto(*tensors, self.input_size, *self.rest)
        if pass_ == "wgrad":
            return torch.ops.pyconv.conv2d_wgrad.auto(*tensors, self.filter_size, *self.rest)
        return torch.ops.pyconv.conv2d_bgrad.auto(*tensors, self.rest[-1])


class Pool2dRegistered:
    """The form over ``torch.ops.pyconv.max_pool2d_*.auto``. Sizes may be symbolic."""

    def __init__(self, input_size: Any, rest: tuple[Any, ...]) -> None:
        self.input_size, self.rest = input_size, rest

    def __call__(self, pass_: str, *tensors: Tensor | None) -> Any:
        if pass_ == "fprop_argmax":
            return torch.ops.pyconv.max_pool2d_argmax.auto(*tensors, *self.rest)
        if pass_.endswith("_tap"):  # which only a form over a plan's kernels begins with
            operand, taps = tensors
            return self(pass_.removesuffix("_tap"), operand, self._places(taps))
        if pass_ == "dgrad":
            return torch.ops.pyconv.max_pool2d_dgrad.auto(*tensors, self.input_size, *self.rest)
        return torch.ops.pyconv.max_pool2d_gather.auto(*tensors, *self.rest)

    def _places(self, taps: Any) -> Tensor:
        """The place ``h * w_extent + w`` in the plane of each tap ``r * s_extent + s`` of its window."""
        (_, s_extent), (stride_h, stride_w), (top, _, left, _), (dilation_h, dilation_w), *_ = self.rest
        p = torch.arange(taps.shape[2], device=taps.device).unsqueeze(1)
        q = torch.arange(taps.shape[3], device=taps.device)
        nothing = taps == 255  # windows that cover no place
        taps = taps.long()  # a byte would not hold the places that a dilation reaches
        h = p * stride_h - top + taps // s_extent * dilation_h
        w = q * stride_w - left + taps % s_extent * dilation_w
        return (h * self.input_size[1] + w).masked_fill(nothing, -1).to(torch.int32)


def _conv2d_form(pass_: str, tensors: tuple[Any, ...], static: tuple[Any, ...]) -> Form:
    if pass_ == "fprop":
        x, w = tensors[:2]
        return Conv2dRegistered(list(x.shape[2:]), list(w.shape[2:]), static)
    if pass_ == "dgrad":
        return Conv2dRegistered(static[0], list(tensors[1].shape[2:]), static[1:])
    if pass_ == "wgrad":
        return Conv2dRegistered(list(tensors[0].shape[2:]), static[0], static[1:])
    return Conv2dRegistered(None, None, static)


def _pool2d_form(pass_: str, tensors: tuple[Any, ...], static: tuple[Any, ...]) -> Form:
    if pass_ == "dgrad":
        return Pool2dRegistered(static[0], static[1:])
    return Pool2dRegistered(list(tensors[0].shape[2:]), static)


#: Operator -> (its pass, its number of tensor arguments, its Functions, its form).
_OPERATORS: dict[str, tuple[str, int, dict[str, Callable[..., Any]], Callable[..., Form]]] = {
    "conv2d_fprop": ("fprop", 3, CONV2D_FUNCTIONS, _conv2d_form),
    "conv2d_dgrad": ("dgrad", 2, CONV2D_FUNCTIONS, _conv2d_form),
    "conv2d_wgrad": ("wgrad", 2, CONV2D_FUNCTIONS, _conv2d_form),
    "conv2d_bgrad": ("bgrad", 1, CONV2D_FUNCTIONS, _conv2d_form),
    "max_pool2d_argmax": ("fprop_argmax", 1, POOL2D_FUNCTIONS, _pool2d_form),
    "max_pool2d_dgrad": ("dgrad", 2, POOL2D_FUNCTIONS, _pool2d_form),
    "max_pool2d_gather": ("gather", 2, POOL2D_FUNCTIONS, _pool2d_form),
}


def _register_autograd(name: str, overload: torch._ops.OpOverload) -> None:
    pass_, count, functions, form_of = _OPERATORS[name]
    has_kernel_name = overload._overloadname == "default"

    def autograd(keyset: Any, *args: Any) -> Any:
        tensors, static = args[:count], args[count:]
        grad_mode = torch.is_grad_enabled()

        def run(*operands: Any) -> Any:
            # A Function's forward runs with gradients off. Under torch.func the operator goes on to the outer
            # levels from here, and they must see the mode of the call.
            with (
                torch.set_grad_enabled(grad_mode),
                forward_ad._set_fwd_grad_enabled(True),
                torch._C._AutoDispatchBelowAutograd(),
            ):
                return overload.redispatch(keyset & torch._C._after_autograd_keyset, *operands, *static)

        if not is_differentiated(*tensors):
            return run(*tensors)
        form = form_of(pass_, tensors, static[:-1] if has_kernel_name else static)
        # Under torch.func this runs once for each level, innermost first, as every operator's autograd does.
        with enable_single_level_autograd_function():
            return functions[pass_](form, run, *tensors)

    ops.library.impl(overload, autograd, "Autograd", with_keyset=True)


def _register_values_only_autograd(overload: torch._ops.OpOverload) -> None:
    has_kernel_name = overload._overloadname == "default"

    def autograd(keyset: Any, x: Tensor, *static: Any) -> Any:
        if is_differentiated(x):  # a derivative needs the argmax
            rest = static[:-1] if has_kernel_name else static
            return torch.ops.pyconv.max_pool2d_argmax.auto(x, *rest)[0]
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, x, *static)

    ops.library.impl(overload, autograd, "Autograd", with_keyset=True)


# ---- vmap: the mapped dimension becomes more samples, or more groups ---------------------------------------


def _front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The mapped dimension first; a tensor without one is repeated."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(tensor: Tensor, dim: int | None, size: int, into: int) -> Tensor:
    """Merges the mapped dimension, as the slower one, into dimension ``into`` of the unmapped tensor."""
    return _front(tensor, dim, size).movedim(0, into).flatten(into, into + 1)


def _vmap_conv2d(op: torch._ops.OpOverload, pass_: str) -> Callable[..., Any]:
    # Where `groups` stands among the arguments after the two operands.
    groups_at = 4

    def bilinear(info: Any, in_dims: tuple[Any, ...], a: Tensor, b: Tensor, *static: Any) -> Any:
        size = info.batch_size
        a_dim, b_dim = in_dims[:2]
        if pass_ != "wgrad" and b_dim is None:  # one filter for all: more samples
            out = op(_fold(a, a_dim, size, 0), b, *static)
            return out.unflatten(0, (size, -1)), 0
        # A filter each: more groups. The channels of x, w and y are laid side by side.
        scaled = list(static)
        scaled[groups_at] *= size
        b_into = 1 if pass_ == "wgrad" else 0
        out = op(_fold(a, a_dim, size, 1), _fold(b, b_dim, size, b_into), *scaled)
        into = 0 if pass_ == "wgrad" else 1
        return out.unflatten(into, (size, out.shape[into] // size)), into

    def fprop(info: Any, in_dims: tuple[Any, ...], x: Tensor, w: Tensor, bias: Any, *static: Any) -> Any:
        y, y_dim = bilinear(info, in_dims, x, w, None, *static)
        if bias is None:
            return y, y_dim
        mapped = in_dims[2] is not None
        rows = bias.movedim(in_dims[2], 0) if mapped else bias.unsqueeze(0)
        return y.movedim(y_dim, 0) + rows[:, None, :, None, None], 0

    return fprop if pass_ == "fprop" else bilinear


def _vmap_bgrad(op: torch._ops.OpOverload) -> Callable[..., Any]:
    def bgrad(info: Any, in_dims: tuple[Any, ...], dy: Tensor, *static: Any) -> Any:
        out = op(_fold(dy, in_dims[0], info.batch_size, 1), *static)
        return out.unflatten(0, (info.batch_size, -1)), 0

    return bgrad


def _vmap_pool2d(op: torch._ops.OpOverload, tensors: int) -> Callable[..., Any]:
    def pool(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        size = info.batch_size
        folded = [_fold(t, dim, size, 0) for t, dim in zip(args[:tensors], in_dims[:tensors], strict=True)]
        out = op(*folded, *args[tensors:])
        if isinstance(out, tuple):
            return tuple(part.unflatten(0, (size, -1)) for part in out), (0,) * len(out)
        return out.unflatten(0, (size, -1)), 0

    return pool


def _register() -> None:
    for name in ops.SCHEMAS:
        for overload in ops.overloads(name):
            if name == "max_pool2d":
                _register_values_only_autograd(overload)
                vmap = _vmap_pool2d(overload, 1)
            else:
                _register_autograd(name, overload)
                pass_, count, _, _ = _OPERATORS[name]
                if name == "conv2d_bgrad":
                    vmap = _vmap_bgrad(overload)
                elif name.startswith("conv2d"):
                    vmap = _vmap_conv2d(overload, pass_)
                else:
                    vmap = _vmap_pool2d(overload, count)
            torch.library.register_vmap(overload, vmap, lib=ops.library)


_register()

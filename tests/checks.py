"""The harness: does canonizing keep the function, remove what it should, and leave the original alone?"""

from __future__ import annotations

import contextlib
import copy
import gc
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Inputs = Callable[[int], Any]
_INSTANCE_NORMS = (F.instance_norm, torch.instance_norm, torch.ops.aten.instance_norm.default)


def count_batch_norms(module: Callable[..., Any], inputs: Any) -> int:
    """Number of batch norm operators that one forward of `module` really dispatches.

    Every spelling counts (``nn.BatchNorm*``, ``SyncBatchNorm``, ``F.batch_norm``, exported graphs), since they all
    end in an ATen operator with ``batch_norm`` in its name. ATen also computes *instance* norm with that operator:
    with statistics of the input it is no fixed affine and is not counted; with running statistics it is a frozen
    affine like any batch norm and is counted. ``FrozenBatchNorm2d`` is written as a product and a sum and cannot be
    seen here.

    Parameters
    ----------
    module : callable
        Module or function to run, without gradients.
    inputs : Any
        A tensor, a tuple of arguments, or ``(args, kwargs)``.

    Returns
    -------
    count : int
    """
    args, kwargs = split_arguments(inputs)
    functions, operators = _InstanceNorms(), _BatchNorms()
    operators.functions = functions
    with torch.no_grad(), functions, operators:
        module(*args, **kwargs)
    return operators.count


class _InstanceNorms(TorchFunctionMode):
    """Knows whether an instance norm is running."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = func in _INSTANCE_NORMS
        self.depth += inside
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.depth -= inside


class _BatchNorms(TorchDispatchMode):
    """Counts ATen's batch norms."""

    functions: _InstanceNorms

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "batch_norm" in func.name() and "backward" not in func.name():
            by_its_input = len(args) > 5 and args[5] is True  # the operator's argument `training`
            self.count += not (self.functions.depth and by_its_input)
        return func(*args, **(kwargs or {}))


def split_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments out of a tensor, a tuple, or ``(args, kwargs)``."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}


@dataclass(frozen=True)
class Snapshot:
    """What a model was: the objects themselves, and copies of their values."""

    modules: dict[str, nn.Module]
    tensors: dict[str, tuple[Tensor, Tensor, bool]]
    training: dict[str, bool]
    attributes: dict[str, frozenset[str]]
    hooks: dict[str, dict[str, tuple[int, ...]]]


def snapshot(model: nn.Module) -> Snapshot:
    """Take down everything about `model` that canonizing must not change."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return Snapshot(
        modules=modules,
        tensors={name: (tensor, tensor.detach().clone(), tensor.requires_grad) for name, tensor in _tensors(model)},
        training={name: module.training for name, module in modules.items()},
        attributes={name: frozenset(module.__dict__) for name, module in modules.items()},
        hooks={name: _hooks(module) for name, module in modules.items()},
    )


def assert_untouched(model: nn.Module, before: Snapshot) -> None:
    """Assert that `model` is what it was when `before` was taken, bit for bit and object for object."""
    after = snapshot(model)
    assert list(after.modules) == list(before.modules), "submodules were added, removed or reordered"
    for name, module in before.modules.items():
        assert after.modules[name] is module, f"{name}: the submodule was replaced"
        assert after.training[name] == before.training[name], f"{name}: the training flag was changed"
        assert after.attributes[name] == before.attributes[name], f"{name}: attributes were added or removed"
        assert after.hooks[name] == before.hooks[name], f"{name}: hooks were added or removed"
    assert list(after.tensors) == list(before.tensors), "parameters or buffers were added or removed"
    for name, (tensor, value, requires_grad) in before.tensors.items():
        assert after.tensors[name][0] is tensor, f"{name}: the tensor was replaced"
        assert same_bits(tensor.detach(), value), f"{name}: the values were changed"
        assert tensor.requires_grad == requires_grad, f"{name}: requires_grad was changed"
        assert tensor.grad is None, f"{name}: a gradient was left behind"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in every bit (NaN equals the same NaN, 0.0 is not -0.0)."""
    if a.dtype != b.dtype or a.shape != b.shape or a.stride() != b.stride():
        return False
    raw_a, raw_b = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return torch.equal(raw_a, raw_b)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    parameters = list(model.named_parameters(remove_duplicate=False))
    return parameters + list(model.named_buffers(remove_duplicate=False))


def _hooks(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(id(hook) for hook in value.values())
        for name, value in module.__dict__.items()
        if "hooks" in name and isinstance(value, dict)
    }


def relative_error(got: Any, wanted: Any) -> float:
    """Largest absolute difference over the largest absolute value of `wanted`, the worst over all tensors.

    Parameters
    ----------
    got, wanted : Any
        Tensors, or the same nesting of tuples, lists and dictionaries of tensors.

    Returns
    -------
    error : float
        ``inf`` where nesting, shape or dtype differ, where one of the two is not finite (NaN never equals NaN by
        accident), or where anything but a floating tensor is not exactly equal. Where `wanted` is zero throughout the
        error is absolute.
    """
    leaves, nesting = pytree.tree_flatten(got)
    reference, wanted_nesting = pytree.tree_flatten(wanted)
    if nesting != wanted_nesting:
        return float("inf")
    return max((_leaf_error(a, b) for a, b in zip(leaves, reference, strict=True)), default=0.0)


def _leaf_error(got: Any, wanted: Any) -> float:
    if not (isinstance(got, Tensor) and isinstance(wanted, Tensor)):
        return 0.0 if type(got) is type(wanted) and got == wanted else float("inf")
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    if not got.dtype.is_floating_point:
        return 0.0 if torch.equal(got, wanted) else float("inf")
    if not (got.isfinite().all() and wanted.isfinite().all()):
        return float("inf")
    if not got.numel():
        return 0.0
    difference = (got.double() - wanted.double()).abs().max().item()
    return float(difference / (wanted.double().abs().max().item() or 1.0))


def evaluate(model: Callable[..., Any], inputs: Any, seed: int = 0) -> tuple[Any, list[Tensor]]:
    """Outputs of `model`, and the gradients of a random projection of them with respect to its floating inputs.

    Parameters
    ----------
    model : callable
        Module or function to run.
    inputs : Any
        A tensor, a tuple of arguments, or ``(args, kwargs)``.
    seed : int
        Seed of the projection.

    Returns
    -------
    outputs : Any
        Detached outputs, nested as the model nests them.
    gradients : list of Tensor
        One for each floating input tensor, zero where the output does not depend on it.
    """
    leaves, nesting = pytree.tree_flatten(split_arguments(inputs))
    leaves = [leaf.detach().clone().requires_grad_() if _floating(leaf) else leaf for leaf in leaves]
    args, kwargs = pytree.tree_unflatten(leaves, nesting)
    with torch.enable_grad():
        # Models that write into their input in place must not meet a leaf.
        outputs = model(*pytree.tree_map(_moved, args), **pytree.tree_map(_moved, kwargs))
        generator = torch.Generator().manual_seed(seed)
        projection = sum(
            (leaf.double() * torch.randn(leaf.shape, generator=generator, dtype=torch.float64)).sum()
            for leaf in pytree.tree_leaves(outputs)
            if _floating(leaf)
        )
    wanted = [leaf for leaf in leaves if _floating(leaf)]
    if isinstance(projection, Tensor) and projection.requires_grad and wanted:
        gradients = torch.autograd.grad(projection, wanted, allow_unused=True)
    else:
        gradients = tuple(None for _ in wanted)
    filled = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(wanted, gradients, strict=True)]
    return pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, outputs), filled


def _floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.dtype.is_floating_point


def _moved(leaf: Any) -> Any:
    return leaf * 1 if _floating(leaf) else leaf


def draw(inputs: Inputs, batch: int, seed: int = 0, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Any:
    """Arguments of `batch` samples out of a case's factory: seeded, scaled, floating tensors cast to `dtype`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = inputs(batch)
    return pytree.tree_map(lambda leaf: (leaf * scale).to(dtype) if _floating(leaf) else leaf, drawn)


def in_double(model: nn.Module) -> nn.Module:
    """`model` itself where it is in float64 already, else a deep copy of it in float64."""
    floating = [tensor for _, tensor in _tensors(model) if _floating(tensor)]
    if all(tensor.dtype == torch.float64 for tensor in floating):
        return model
    return copy.deepcopy(model).double()


def assert_same_function(
    model: nn.Module,
    other: Callable[..., Any],
    inputs: Inputs,
    *,
    tolerance: float = 1e-10,
    dtype: torch.dtype = torch.float64,
    scale: float = 10.0,
) -> None:
    """Assert equal outputs and input gradients at two batch sizes, for several seeds and two input scales.

    Parameters
    ----------
    model : nn.Module
        The reference; it is run in evaluation mode, and its training flags are put back afterwards.
    other : callable
        What must compute the same.
    inputs : callable
        Batch size to arguments.
    tolerance : float
        Largest relative error that passes.
    dtype : torch.dtype
        Precision of the inputs; both models are in it already.
    scale : float
        Factor on the inputs of the last comparison.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for batch, seed, factor in ((2, 0, 1.0), (3, 1, 1.0), (2, 2, scale)):
            arguments = draw(inputs, batch, seed, dtype, factor)
            wanted, wanted_gradients = evaluate(model, arguments)
            got, got_gradients = evaluate(other, arguments)
            where = f"batch {batch}, seed {seed}, scale {factor}"
            error = relative_error(got, wanted)
            assert error <= tolerance, f"outputs differ by {error:.2g} ({where})"
            error = relative_error(got_gradients, wanted_gradients)
            assert error <= tolerance, f"input gradients differ by {error:.2g} ({where})"
    finally:
        for module, mode in training.items():
            module.training = mode


class _Loose(fx.Interpreter):
    """Runs a graph and takes down every tensor that no module of its own has made."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: list[str] = []
        self.called: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        args, _ = self.fetch_args_kwargs_from_env(n)
        value = super().run_node(n)
        if n.op == "call_module":
            layer = self.module.get_submodule(str(n.target))
            if id(layer) in self.called:
                self.found.append(f"{n.target} is called a second time")
            self.called.add(id(layer))
            if getattr(layer, "inplace", False):
                self.found.append(f"{n.target} works in place")
            if isinstance(layer, (nn.Identity, nn.modules.dropout._DropoutNd)):
                self.found.append(f"{n.target} does nothing")
        elif n.op in ("call_function", "call_method") and not _is_bookkeeping(n, args, value):
            self.found.append(f"{n.format_node()} is no module")
        return value


def _is_bookkeeping(node: fx.Node, args: tuple[Any, ...], value: Any) -> bool:
    """Sizes and the arithmetic on them, and taking one of several results."""
    if node.target is operator.getitem:
        return not isinstance(args[0], Tensor)
    return not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def loose_ends(canonical: fx.GraphModule, inputs: Any) -> list[str]:
    """What in a graph breaks the rule "one call, one module, not in place, nothing idle", found by running it.

    This is not ``canonize.canonical``: it looks at values and modules only and shares no code with what it judges.

    Parameters
    ----------
    canonical : fx.GraphModule
        The graph.
    inputs : Any
        A tensor, a tuple of arguments, or ``(args, kwargs)``.

    Returns
    -------
    found : list of str
        One line each; empty where nothing is loose.
    """
    args, kwargs = split_arguments(inputs)
    names = [node.target for node in canonical.graph.find_nodes(op="placeholder")]
    defaults = {node.target: node.args[0] for node in canonical.graph.find_nodes(op="placeholder") if node.args}
    values = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    loose = _Loose(canonical)
    with torch.no_grad():
        loose.run(*(values[name] for name in names))
    return loose.found


def assert_canonized(
    model: nn.Module,
    inputs: Inputs,
    *,
    tolerance: float = 1e-10,
    batch_norms: int = 0,
    strategy: Literal["threshold", "untangle"] = "threshold",
    verify: bool = True,
    scale: float = 10.0,
) -> fx.GraphModule:
    """Canonize `model` in float64 and assert that it is the same function without its batch norms.

    Parameters
    ----------
    model : nn.Module
        Any model; copied unless it is in float64 already, and never changed.
    inputs : callable
        Batch size to arguments (a tensor, a tuple, or ``(args, kwargs)``).
    tolerance : float
        Largest relative error of outputs and input gradients.
    batch_norms : int
        Number of batch norm operators that must be left in one forward.
    strategy, verify
        Passed on to :func:`canonize.canonize`.
    scale : float
        Factor on the inputs of the last comparison; 1.0 for models whose output explodes beyond their usual inputs.

    Returns
    -------
    canonical : fx.GraphModule
    """
    import canonize

    model = in_double(model)
    example = draw(inputs, 2)
    before = snapshot(model)
    canonical: fx.GraphModule = canonize.canonize(model, example, strategy=strategy, verify=verify)
    assert_untouched(model, before)
    assert_same_function(model, canonical, inputs, tolerance=tolerance, scale=scale)
    left = count_batch_norms(canonical, example)
    assert left == batch_norms, f"{left} batch norms are left instead of {batch_norms}\n{canonical.report}"
    assert loose_ends(canonical, example) == []
    assert_untouched(model, before)
    return canonical


def float64_bytes() -> int:
    """What all float64 tensors that are alive take up, each memory once."""
    gc.collect()
    # Not instances: what other tests have left behind (tensors without memory among it) is not even looked at.
    alive = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter) and x.dtype == torch.float64]
    storages: dict[int, int] = {}
    for tensor in alive:
        if tensor.device.type == "cpu" and tensor.layout == torch.strided:
            with contextlib.suppress(RuntimeError, NotImplementedError):  # one that only stands for another
                storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
    return sum(storages.values())

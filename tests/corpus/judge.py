"""Convert, then compare with the original on several inputs, and what the report says with what really ran."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import canonize
from canonize.errors import CanonizeError
from tests.corpus.model import Between
from tests.corpus.spellings import Spelling, spellings_of

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Result:
    """What came of one spelling of one sample.

    Attributes
    ----------
    operator, spelling : str
    outcome : str
        ``exact``, ``refused``, ``wrong``, ``cannot run``, ``crash``, ``pinned`` (right, but not at another batch
        size), ``report`` (right, but the report says something else than what ran), ``random`` (draws random numbers,
        and is not called canonical).
    detail : str
    canonical : bool
    """

    operator: str
    spelling: str
    outcome: str
    detail: str = ""
    canonical: bool = False


class _Ran(TorchDispatchMode):
    """The names of the operators that really run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in _NORMS and len(args) > 5 and args[5] is True:
            name = "instance_norm"  # by the statistics of the input: a division, no fixed affine
        self.names.append(name)
        return func(*args, **(kwargs or {}))


def judge(op: Any, count: int = 2) -> Iterator[Result]:
    """Every spelling of the first samples of an operator."""
    name = f"{op.name}.{op.variant_test_name}".strip(".")
    dtype = torch.float64 if torch.float64 in op.dtypes else None
    # What nobody wrote (``empty_like``) compares with nothing. Some samples seed torch's generator within the call,
    # which no graph can hold.
    if (
        dtype is None
        or "empty" in op.name
        or "wrapper_set_seed" in getattr(getattr(op.op, "__code__", None), "co_names", ())
    ):
        return
    try:
        torch.manual_seed(0)
        samples = [sample for sample, _ in zip(op.sample_inputs("cpu", dtype), range(count), strict=False)]
    except Exception:  # needs a library, or another device
        return
    for sample in samples:
        if not _is_fit(sample.input):
            continue
        for spelling in spellings_of(op, sample):
            try:
                result = _one(name, spelling, sample)
            except Exception as error:
                result = Result(name, spelling.kind, "not judged", f"{type(error).__name__}: {error}"[:300])
            if result is not None:
                yield result


def _is_fit(input: Any) -> bool:
    tensors = [input] if isinstance(input, Tensor) else input if isinstance(input, tuple | list) else []
    return bool(tensors) and all(
        isinstance(t, Tensor) and t.is_floating_point() and t.layout is torch.strided for t in tensors
    )


def _one(name: str, spelling: Spelling, sample: Any) -> Result | None:
    """``None`` where the original itself does not run."""
    generator = torch.Generator().manual_seed(1)
    inputs = [sample.input] if isinstance(sample.input, Tensor) else list(sample.input)
    inputs = [tensor.detach() for tensor in inputs]
    try:
        torch.manual_seed(2)
        model = Between(spelling.call, sample, generator).eval()
        x = model.example(inputs)
        with torch.no_grad():
            model.adapt(model.between(*_copied(x)))
        expected = _run(model, x)
    except Exception:
        return None

    def say(outcome: str, detail: str = "", canonical: bool = False) -> Result:
        return Result(name, spelling.kind, outcome, detail[:300], canonical)

    try:
        converted: Any = canonize.canonize(model, x, verify=False)
    except CanonizeError as error:
        return say("crash" if "report this model" in str(error) else "refused", str(error).split("\n")[0])
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        return say("crash", f"{type(error).__name__}: {error} at {lines[-1].filename}:{lines[-1].lineno}")
    if _is_random(model, x):
        if converted.report.canonical:
            return say("report", "called canonical, and it is random")
        return say("random")
    others = {
        "sample": inputs,
        "fresh values": [_other(tensor, generator) for tensor in inputs],
        "another batch size": [_one_more(tensor) for tensor in inputs],
    }
    for label, values in others.items():
        given = model.example(values)
        if label != "sample":
            try:
                expected = _run(model, given)
            except Exception:
                continue
        try:
            found = _run(converted, given)
        except Exception as error:
            if label == "another batch size":
                return say("pinned", str(error).split("\n")[0])
            return say("cannot run", f"{label}: {type(error).__name__}: {error}")
        difference = _difference(expected, found)
        if difference and _jumps(model, values):
            continue
        if difference:
            return say("wrong", f"{label}: {difference}")
    problem = _misreported(converted, x)
    return say("report" if problem else "exact", problem, converted.report.canonical)


def _jumps(model: Between, inputs: list[Tensor]) -> bool:
    """Whether the call alone gives something else for values that rounding could have made of these: zeros, say."""
    with torch.no_grad():
        found = [
            [
                value
                for value in pytree.tree_leaves(model.alone([t + step for t in inputs]))
                if isinstance(value, Tensor)
            ]
            for step in (0.0, 1e-14)
        ]
    return any(
        one.shape != other.shape or not torch.allclose(one.double(), other.double(), atol=1e-6, equal_nan=True)
        for one, other in zip(*found, strict=True)
    )


def _is_random(model: Between, x: tuple[Tensor, ...]) -> bool:
    """Whether the original gives something else under another seed."""
    with torch.no_grad():
        found = []
        for seed in (5, 6):
            torch.manual_seed(seed)
            leaves = pytree.tree_leaves(model(*_copied(x)))
            found.append([v.double() for v in leaves if isinstance(v, Tensor) and v.is_floating_point()])
    return any(not torch.allclose(one, other, equal_nan=True) for one, other in zip(*found, strict=True))


def _copied(values: tuple[Tensor, ...]) -> list[Tensor]:
    return [value.detach().clone() for value in values]


def _other(tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    return tensor * (0.9 + 0.05 * noise)


def _one_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]]) if tensor.ndim and tensor.shape[0] else tensor


def _run(model: Any, given: tuple[Tensor, ...]) -> list[Any]:
    """Outputs, and gradients of their sum with respect to the inputs."""
    torch.manual_seed(3)
    leaves = [value.clone().requires_grad_() for value in _copied(given)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outputs = pytree.tree_leaves(model(*leaves))
        total = sum(
            (value * _weights(value)).sum()
            for value in outputs
            if isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad
        )
        gradients: Any = ()
        if isinstance(total, Tensor):
            try:
                gradients = torch.autograd.grad(total, leaves, allow_unused=True)
            except RuntimeError:  # not implemented for this operator
                gradients = ()
    return [value.detach() if isinstance(value, Tensor) else value for value in (*outputs, *gradients)]


def _weights(value: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)


def _difference(expected: list[Any], found: list[Any]) -> str:
    # A gradient of zeros is none.
    missing = expected[len(found) :]
    if any(isinstance(value, Tensor) and bool(value.any()) for value in missing):
        return f"{len(found)} values instead of {len(expected)}"
    expected = expected[: len(found)]
    # Where the original has no gradients (it writes into what torch keeps for them), there is nothing to compare.
    found = found[: len(expected)]
    for one, other in zip(expected, found, strict=True):
        if not isinstance(one, Tensor) or not isinstance(other, Tensor):
            zero = one is None and isinstance(other, Tensor) and not bool(other.any())
            if not zero and not (isinstance(one, Tensor) and other is None and not bool(one.any())) and one != other:
                return f"{other!r} instead of {one!r}"
            continue
        if one.shape != other.shape:
            return f"shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        if one.dtype != other.dtype:
            return f"dtype {other.dtype} instead of {one.dtype}"
        if one.layout is not torch.strided:
            one, other = one.to_dense(), other.to_dense()
        if one.is_complex():
            one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
        if not one.numel():
            continue
        one, other = one.double(), other.double()
        scale = max(1.0, float(one.nan_to_num(0.0, 0.0, 0.0).abs().max()))
        if not torch.allclose(one, other, rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            return f"off by {float((one - other).abs().nan_to_num(float('inf')).max()):.3g} of {scale:.3g}"
    return ""


_NORMS = ("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm")


def _misreported(converted: Any, x: tuple[Tensor, ...]) -> str:
    """Where the report, ``inspect`` and what runs disagree."""
    report = converted.report
    with _Ran() as ran, torch.no_grad():
        torch.manual_seed(3)
        converted(*_copied(x))
    norms = [name for name in ran.names if name in _NORMS]
    if report.canonical and norms:
        return f"called canonical, and {norms[0]} runs"
    calls = [node for node in converted.graph.nodes if node.op in ("call_function", "call_method")]
    values = [node for node in calls if _gives_tensor(converted, node, x)]
    if report.canonical and values:
        return f"called canonical, and {values[0].format_node()} is a call"
    for finding in report.findings:
        if finding.what.startswith(("functional call", "tensor method")) and not values:
            return f"{finding.where}: {finding.what}, and no call computes a tensor"
    again = canonize.inspect(converted, x)
    if again.canonical != report.canonical:
        return f"inspect: {[f'{f.rule} {f.where}: {f.what}' for f in again.findings][:3]}"
    return ""


def _gives_tensor(converted: Any, node: Any, x: tuple[Tensor, ...]) -> bool:
    """Whether a node computes a tensor that is no item of a module's tuple."""
    interpreter = torch.fx.Interpreter(converted)
    interpreter.garbage_collect_values = False
    with torch.no_grad():
        interpreter.run(*_copied(x))
    if not isinstance(interpreter.env[node], Tensor):
        return False
    source = node.args[0] if node.args else None
    return not (isinstance(source, torch.fx.Node) and isinstance(interpreter.env.get(source), tuple | list))

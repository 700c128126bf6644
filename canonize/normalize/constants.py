"""Evaluate what does not depend on the input: weight standardisation, frozen statistics, masks, coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from canonize.algebra.affine import EXACT
from canonize.algebra.exact import exact_value
from canonize.errors import cuts_in
from canonize.twins.float64 import in_float64
from canonize.vocabulary import resolve


@dataclass
class FixedValue:
    """A value that is the same on every call.

    Attributes
    ----------
    value : object
        As the model computes it: a tensor (the model's own parameter where nothing was computed) or a plain value.
    exact : object
        The same computed in float64 from the model's parameters.
    name : str
        Qualified name of the parameter or buffer it is, or of the one it was computed from.
    """

    value: Any
    exact: Any
    name: str = ""
    computed: bool = True

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor."""
        return isinstance(self.value, Tensor)


def lookup(root: nn.Module, target: str) -> Any:
    """The attribute of a module with a dotted name."""
    found: Any = root
    for part in target.split("."):
        found = getattr(found, part)
    return found


class Answers(Protocol):
    """What knows the answers to questions that an input is asked (`normalize.questions`)."""

    def answer(self, node: fx.Node) -> FixedValue | None:
        """A dtype, a device or a size that is always the same."""

    def is_tensor(self, value: Any) -> bool:
        """Whether a value is a tensor."""

    def template(self, node: fx.Node) -> FixedValue | None:
        """An empty tensor of a value's dtype."""


def fixed_values(
    graph: fx.Graph, root: nn.Module, questions: Answers
) -> tuple[dict[fx.Node, FixedValue], dict[fx.Node, FixedValue]]:
    """Evaluate every node that depends on no input and on no random number.

    Parameters
    ----------
    graph, root
    questions : Answers
        What is the same on every call though an input is asked for it: a dtype, a size that layers fix.

    Returns
    -------
    fixed : dict
        Values that no input has a part in, and tensors that only need to be told a dtype or a size.
    numbers : dict
        Dtypes, sizes and numbers made of them.
    """
    fixed: dict[fx.Node, FixedValue] = {}
    numbers: dict[fx.Node, FixedValue] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            value = lookup(root, str(node.target))
            exact = exact_value(value) if isinstance(value, Tensor) else value
            fixed[node] = FixedValue(value, exact, str(node.target), computed=False)
        elif node.op == "call_module":
            sources = node.all_input_nodes
            evaluated = None
            if sources and all(source in fixed for source in sources):
                evaluated = _evaluate(node, fixed, root.get_submodule(str(node.target)))
            if evaluated is not None:
                fixed[node] = evaluated
        elif node.op in ("call_function", "call_method"):
            follow(node, fixed, numbers, questions)
    return fixed, numbers


def follow(
    node: fx.Node,
    fixed: dict[fx.Node, FixedValue],
    numbers: dict[fx.Node, FixedValue],
    questions: Answers,
) -> None:
    """Enter a node's value, where it is the same on every call."""
    sources = node.all_input_nodes
    unknown = [source for source in sources if source not in fixed]
    if not unknown:
        evaluated = _evaluate(node, fixed) if _is_fixed(node) else None
        if evaluated is not None:
            fixed[node] = evaluated
        return
    said = questions.answer(node)
    if said is not None:
        numbers[node] = said
        return
    known = {source: numbers[source] for source in unknown if source in numbers}
    like = _only_its_dtype(node, questions) if len(known) < len(unknown) else None
    if like is not None:
        known[like[0]] = like[1]
    if len(known) < len(unknown) or not _is_fixed(node):
        return
    evaluated = _evaluate(node, {**{source: fixed[source] for source in sources if source in fixed}, **known})
    if evaluated is not None:
        (fixed if evaluated.is_tensor else numbers)[node] = evaluated


def _only_its_dtype(node: fx.Node, questions: Answers) -> tuple[fx.Node, FixedValue] | None:
    """The argument of a cast that only says a dtype (``s.type_as(x)``, ``s.to(x)``), and a value of that dtype."""
    operation = resolve(node, questions.is_tensor)
    other = operation.bound.get("other") if operation is not None and operation.row.casts else None
    if operation is None or other is operation.bound.get("input"):
        return None
    template = questions.template(other) if isinstance(other, fx.Node) else None
    return None if template is None or not isinstance(other, fx.Node) else (other, template)


def _is_fixed(node: fx.Node) -> bool:
    """Whether a call of what is fixed is fixed itself."""
    operation = resolve(node)
    if operation is None:
        return not str(getattr(node.target, "__name__", "")).startswith("_assert")
    if operation.row.drops:
        return not operation.get("training", True) or operation.get("p") == 0
    return not operation.random and not operation.row.asserts


def _evaluate(node: fx.Node, fixed: dict[fx.Node, FixedValue], module: nn.Module | None = None) -> FixedValue | None:
    try:
        with torch.no_grad():
            value = _run(node, lambda n: _detached(fixed[n].value), module)
    except Exception as error:
        if cuts_in(error):
            raise
        return None
    try:
        # As the reference is run in float64: what integers become by default is float64 there, too.
        with torch.no_grad(), in_float64():
            exact = _run(node, lambda n: _as_exact(fixed[n].exact), None if module is None else _in_float64(module))
    except Exception as error:
        if cuts_in(error):
            raise
        exact = value
    if (
        isinstance(exact, Tensor)
        and isinstance(value, Tensor)
        and exact.is_floating_point() != value.is_floating_point()
    ):
        exact = value
    if isinstance(exact, Tensor) and isinstance(value, Tensor) and _loses_nothing(value, exact):
        exact = value  # a table that was only looked up, say: once is enough to hold it
    names = [fixed[n].name for n in node.all_input_nodes if fixed[n].name]
    return FixedValue(value, exact, names[0] if names else "")


def _loses_nothing(value: Tensor, exact: Tensor) -> bool:
    return value.dtype != exact.dtype and value.shape == exact.shape and torch.equal(value.to(exact.dtype), exact)


def _in_float64(module: nn.Module) -> Callable[..., Any]:
    state = {
        name: _as_exact(exact_value(tensor)) for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }
    return lambda *args, **kwargs: torch.func.functional_call(module, state, args, kwargs)


def _run(node: fx.Node, value_of: Any, module: Callable[..., Any] | None) -> Any:
    args = fx.map_arg(node.args, value_of)
    kwargs = fx.map_arg(node.kwargs, value_of)
    if module is not None:
        return module(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _as_exact(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        return value.to(EXACT) if value.is_floating_point() else value.clone()
    return value

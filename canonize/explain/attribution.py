"""Relevance of every input value, by any method, for any model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from canonize.capture.captured import GUARD
from canonize.errors import ExplainError, InputError
from canonize.explain.batch import explain_batch
from canonize.explain.job import Job, Part, Start
from canonize.explain.law import check_unruled
from canonize.explain.methods import find
from canonize.explain.watch import LawWatch
from canonize.inputs.infer import dtype_and_device

if TYPE_CHECKING:
    from canonize.explain.ledger import Ledger

Relevance = Tensor | tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Attribution:
    """What :func:`attribute` found.

    Attributes
    ----------
    relevance : Tensor or tuple
        Shape of the input, ``(N, C, H, W)``; ``(N, K, C, H, W)`` where K targets were asked for. For a model of several
        inputs a tuple with one entry for each, None for those that are no floating tensors.
    output : Tensor
        The model's output, detached.
    target : Tensor
        The classes explained, int64 of shape ``(N,)`` or ``(N, K)``; or the initial relevance that was given.
    method : str
    hyperparameters : dict
        As used, defaults included.
    notes : tuple of str
        What makes the heatmap doubtful (an operation without a rule, a module called twice under a rule, say).
    ledger : Ledger
        Of methods that are sets of rules and share relevance: what came into each layer, went on, and was kept, and by
        what (:class:`canonize.explain.ledger.Ledger`). Where it was not asked for at once (``ledger=True``), the
        attribution is computed again for it.
    """

    relevance: Relevance
    output: Tensor
    target: Tensor
    method: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    again: Callable[[], Attribution] | None = field(default=None, repr=False, compare=False)
    written: Ledger | None = field(default=None, repr=False, compare=False)

    @property
    def ledger(self) -> Ledger:
        """Where relevance went, layer by layer."""
        if self.written is None:
            if self.again is None:
                raise ExplainError(
                    f"{self.method} shares no relevance out", hint="A ledger belongs to LRP: method='epsilon-plus', say"
                )
            repeated = self.again()
            if not _same(repeated.relevance, self.relevance):
                raise ExplainError(
                    "the model or the input is no longer what was explained", hint="Ask for the ledger: ledger=True"
                )
            object.__setattr__(self, "written", repeated.written)
        assert self.written is not None
        return self.written

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"again": None}

    def heatmap(self, dim: int = -3) -> Tensor:
        """Relevance of the first input, summed over its channels: ``(N, H, W)`` for images."""
        first = self.relevance if isinstance(self.relevance, Tensor) else self.relevance[0]
        if first is None:
            raise ExplainError("the first input is no floating tensor", hint="Use .relevance")
        return first.sum(dim)


def attribute(
    model: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    target: int | Sequence[int] | Tensor | None = None,
    *,
    method: str = "epsilon-plus",
    initial: str = "one",
    choices: Any = None,
    layers: Any = None,
    canonizers: Sequence[Any] = (),
    output: Callable[[Any], Tensor] | None = None,
    batch_size: int | None = None,
    unruled: str = "refuse",
    ledger: bool = False,
    **hyperparameters: Any,
) -> Attribution:
    """Explain a model's outputs: relevance of each input value.

    Parameters
    ----------
    model : nn.Module
        Canonical or not; its modes, hooks and weights are afterwards what they were before.
    inputs : Tensor or tuple
        A batch, ``(N, ...)``; a tuple for a model of several inputs. Cast to the model's device and dtype. Where no
        input is a floating tensor, tokens are explained at their embeddings: relevance is ``(N, length, width)``.
    target : int, sequence of int, Tensor or None
        Class to explain: one for all; one for each sample, ``(N,)``; K for each, ``(N, K)``; or a floating tensor of
        the output's shape, which is the initial relevance. By default what the model decides for each sample.
    method : str
        See :func:`canonize.explain.methods`.
    initial : {"one", "output"}
        Relevance that the target's output starts with: 1, or its value.
    choices, layers, canonizers
        As for :func:`canonize.explain.composite`; for methods that are sets of rules. Choices may be a mapping.
    output : callable, optional
        Picks the tensor to explain, ``(N, classes, ...)``, out of what the model returns.
    batch_size : int, optional
        Samples at once; all by default.
    unruled : {"refuse", "gradient"}
        What to do where relevance comes through an operation of a canonical model that has no rule: refuse, naming it,
        or take the plain gradient there and say so in the notes. Of other models, which are explained for comparison,
        the notes list each such operation.
    ledger : bool
        Write the ledger at once.
    **hyperparameters
        Of the method.

    Returns
    -------
    Attribution

    Raises
    ------
    ExplainError
        If there is no such method, it lacks a hyperparameter, the output is no tensor with a class dimension, or an
        operation has no rule.
    InputError
        If no input is a floating tensor, and none is embedded.

    Examples
    --------
    >>> attribute(g, images, target=207, method="epsilon-plus").heatmap()  # doctest: +SKIP
    """
    known = find(method)
    known.check(hyperparameters)
    if known.kind != "rules" and (choices is not None or layers or canonizers):
        raise ExplainError(f"{known.name} has no rules to choose", hint="Leave out choices, layers and canonizers")
    if ledger and not (known.kind == "rules" and known.shares):
        raise ExplainError(f"{known.name} shares no relevance out", hint="A ledger belongs to LRP: epsilon-plus, say")
    job = Job(model, known, dict(known.defaults) | hyperparameters, Start(target, initial), output or _tensor)
    given = _placed(model, inputs if isinstance(inputs, tuple) else (inputs,))
    rules: Any = None
    if known.kind == "rules":
        from canonize.explain.composites import composite

        rules = composite(known.name, choices=choices, layers=layers, canonizers=canonizers, **hyperparameters)
    lawful = known.kind == "rules" or known.name == "deep-lift"
    with evaluating(model), torch.inference_mode(False), torch.enable_grad(), contextlib.ExitStack() as stack:
        given = tuple(_free(value) for value in given)
        calls = bookkeeper = watch = None
        if rules is not None:
            from canonize.explain.reuse import counted_calls

            stack.enter_context(rules.context(model))
            calls = stack.enter_context(counted_calls(model, rules))
            if ledger:
                from canonize.explain.ledger import Bookkeeper

                bookkeeper = stack.enter_context(Bookkeeper(model, rules.attached))
        if lawful:
            watch = stack.enter_context(LawWatch(model, known, rules, check_unruled(unruled)))
            job = replace(job, watch=watch)
        try:
            parts = _in_parts(job, given, batch_size)
        except (RuntimeError, AssertionError) as error:
            raise _told(error) from error
    notes = (*(calls.notes(len(parts)) if calls is not None else ()), *(watch.notes() if watch is not None else ()))
    relevance = tuple(_joined([part.relevance[i] for part in parts]) for i in range(len(given)))
    if not all(bool(value.isfinite().all()) for value in relevance if value is not None):
        notes = (*notes, "relevance is not finite: it overflowed, or was divided by nothing")
    if not _inside(given, hyperparameters):
        notes = (*notes, "values of the input lie outside of the box (low, high), whose rule means nothing there")
    written = None
    if bookkeeper is not None:
        started = sum(part.started for part in parts)
        arrived = tuple(None if value is None else float(value.double().sum()) for value in relevance)
        written = bookkeeper.ledger(known.name, started, arrived)

    def again() -> Attribution:
        options: dict[str, Any] = {
            "initial": initial, "choices": choices, "layers": layers, "canonizers": canonizers, "output": output,
            "batch_size": batch_size, "unruled": unruled,
        }  # fmt: skip
        return attribute(model, inputs, target, method=method, ledger=True, **options, **hyperparameters)

    return Attribution(
        relevance=relevance if isinstance(inputs, tuple) else relevance[0],  # type: ignore[arg-type]
        output=torch.cat([part.output for part in parts]),
        target=torch.cat([part.target for part in parts]),
        method=known.name,
        hyperparameters=job.settings,
        notes=notes,
        again=again if known.kind == "rules" and known.shares else None,
        written=written,
    )


def _inside(inputs: tuple[Any, ...], hyperparameters: Mapping[str, Any]) -> bool:
    """Whether images lie within the bounds of the box rule, where it has any."""
    low, high = hyperparameters.get("low"), hyperparameters.get("high")
    if low is None or high is None:
        return True
    images = [value for value in inputs if isinstance(value, Tensor) and value.is_floating_point()]
    if len(images) != 1:
        return True
    slack = 1e-5 * float(images[0].abs().amax() + 1)
    low, high = (torch.as_tensor(bound, dtype=images[0].dtype, device=images[0].device) for bound in (low, high))
    return bool((images[0] >= low - slack).all() and (images[0] <= high + slack).all())


def _same(one: Relevance, other: Relevance) -> bool:
    ones, others = (value if isinstance(value, tuple) else (value,) for value in (one, other))
    return all(
        a is b if a is None or b is None else a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, equal_nan=True)
        for a, b in zip(ones, others, strict=True)
    )


def _free(value: Any) -> Any:
    """A tensor that gradients may be taken of, wherever it was made."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _told(error: Exception) -> Exception:
    if str(error).startswith(GUARD):
        return ExplainError(
            f"the method runs the model on a batch of another size ({error})",
            hint="Write forward with x.shape[0] for len(x), or explain as many samples as it was canonized with",
        )
    if str(error).startswith("Invalid shape!"):
        return ExplainError(
            "the bounds of a box do not fit what its layer reads",
            hint="Give low and high in the shape of the input, and the box to a layer that the image enters",
        )
    if "Inference tensors" in str(error):
        return ExplainError(
            "the model's weights were made under torch.inference_mode, so that no gradient can be taken",
            hint="Make the model outside of it, or copy it: copy.deepcopy(model)",
        )
    return error


def _in_parts(job: Job, inputs: tuple[Any, ...], batch_size: int | None) -> list[Part]:
    total = len(inputs[0])
    size = total if batch_size is None else batch_size
    if total == 0 or size < 1:
        raise InputError("there is nothing to explain", hint="Give at least one sample, and batches of at least one")
    return [
        explain_batch(job, tuple(_rows(value, first, size, total) for value in inputs), first, total)
        for first in range(0, total, size)
    ]


def _rows(value: Any, first: int, size: int, total: int) -> Any:
    return value[first : first + size] if isinstance(value, Tensor) and value.ndim and len(value) == total else value


def _placed(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Inputs where the model's weights are, in their dtype."""
    embeds = any(isinstance(layer, nn.Embedding) for layer in model.modules())
    if not any(isinstance(value, Tensor) and (value.is_floating_point() or embeds) for value in inputs):
        raise InputError(
            "there is no floating input to give relevance to, and no nn.Embedding that reads one",
            hint="Give a tensor of floating dtype",
        )
    dtype, device = dtype_and_device(model)
    return tuple(
        value.detach().to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, Tensor)
        else value
        for value in inputs
    )


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    raise ExplainError(
        f"the model returns a {type(output).__name__}, not a tensor",
        hint="Give output=lambda o: o['logits'], or what picks the tensor to explain",
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.cat(tensors) if tensors else None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, each module's own mode restored afterwards."""
    modes = {module: module.training for module in model.modules()}
    try:
        try:
            model.eval()
        except NotImplementedError:  # the module of an exported program: it is what it was exported as
            for module in modes:
                module.training = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode

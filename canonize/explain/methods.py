"""The methods there are, by name. Nothing here imports torch or an explainer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from canonize.errors import ExplainError

_COMMON = ("epsilon", "stabilizer", "zero_params")


@dataclass(frozen=True)
class Method:
    """A way to explain.

    Attributes
    ----------
    name : str
    kind : {"rules", "gradient", "captum"}
        A zennit composite; something made of plain gradients; or a method of captum.
    summary : str
        One line.
    rules : mapping
        Of a composite: rule of ``convolution``, ``dense``, ``first`` layers and ``relu``.
    hyperparameters : tuple of str
        What it takes.
    required : tuple of str
        What it has no default for.
    defaults : mapping
        Values that are the method's own.
    activations : bool
        Whether relevance passes activations unchanged; their gradient applies otherwise.
    shares : bool
        Whether sums, gates, pooling and attention have rules; the gradient applies everywhere otherwise.
    """

    name: str
    kind: str
    summary: str
    rules: Mapping[str, str] = field(default_factory=dict)
    hyperparameters: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    activations: bool = True
    shares: bool = True

    def check(self, given: Iterable[str]) -> None:
        """Raise :class:`~canonize.errors.ExplainError` on what the method does not take, or lacks."""
        given = set(given)
        for name in sorted(given - set(self.hyperparameters)):
            takes = ", ".join(self.hyperparameters) or "none"
            raise ExplainError(f"{self.name} has no hyperparameter {name!r}", hint=f"It takes: {takes}")
        for name in self.required:
            if name not in given:
                raise ExplainError(f"{self.name} needs {name}", hint=f"Give {name}=..., a bound of the input's values")


def _lrp(name: str, summary: str, convolution: str, dense: str = "epsilon", first: str = "", **more: Any) -> Method:
    rules = {"convolution": convolution, "dense": dense} | ({"first": first} if first else {})
    own = {"gamma": ("gamma",), "alpha-beta": ("alpha", "beta")}.get(convolution, ())
    return Method(name, "rules", summary, rules, (*_COMMON, *own, *more.pop("also", ())), **more)


_A2B1 = {"alpha": 2.0, "beta": 1.0}
METHODS: tuple[Method, ...] = (
    _lrp("epsilon-plus", "LRP: z+ in convolutions, epsilon in dense layers", "z-plus"),
    _lrp("epsilon-plus-flat", "the same, flat in the first layer", "z-plus", first="flat"),
    _lrp("alpha2-beta1", "LRP: alpha2-beta1 in convolutions, epsilon in dense layers", "alpha-beta", defaults=_A2B1),
    _lrp("alpha2-beta1-flat", "the same, flat in the first layer", "alpha-beta", first="flat", defaults=_A2B1),
    _lrp("epsilon-gamma", "LRP: gamma in convolutions, epsilon in dense layers", "gamma"),
    _lrp(
        "epsilon-gamma-box",
        "the same, box in the first layer",
        "gamma",
        first="z-box",
        also=("low", "high"),
        required=("low", "high"),
    ),
    _lrp("epsilon", "LRP: epsilon in every linear layer", "epsilon"),
    Method(
        "excitation-backprop",
        "rules",
        "z+ in every linear layer, gradients of activations",
        {"convolution": "z-plus", "dense": "z-plus"},
        ("stabilizer", "zero_params"),
        activations=False,
    ),
    _lrp(
        "lrp-custom",
        "LRP: alpha1-beta0 in every linear layer, box in the image's first layer",
        "z-plus",
        dense="z-plus",
        first="z-box",
        also=("low", "high"),
        required=("low", "high"),
    ),
    Method(
        "guided-backprop", "rules", "gradient; ReLUs let only positive gradients pass", {"relu": "guided"}, shares=False
    ),
    Method(
        "deconvnet",
        "rules",
        "gradient; ReLUs rectify the gradient instead of the input",
        {"relu": "deconvnet"},
        shares=False,
    ),
    Method("gradient", "gradient", "gradient of the output"),
    Method("input-x-gradient", "gradient", "gradient times input"),
    Method(
        "integrated-gradients",
        "captum",
        "gradients from a baseline to the input",
        hyperparameters=("baseline", "steps"),
        defaults={"baseline": 0.0, "steps": 32},
    ),
    Method(
        "smoothgrad",
        "gradient",
        "mean gradient of noisy copies of the input",
        hyperparameters=("samples", "noise", "seed"),
        defaults={"samples": 16, "noise": 0.1, "seed": 0},
    ),
    Method(
        "deep-lift",
        "captum",
        "DeepLIFT (rescale rule) against a baseline",
        hyperparameters=("baseline",),
        defaults={"baseline": 0.0},
    ),
)


def methods() -> list[str]:
    """Names of all methods."""
    return [method.name for method in METHODS]


def find(name: str) -> Method:
    """A method by name; spaces and underscores count as hyphens, ``epsilon-alpha2-beta1`` as ``alpha2-beta1``.

    Raises
    ------
    ExplainError
        If there is none.
    """
    wanted = name.strip().lower().replace("_", "-").replace(" ", "-").replace("epsilon-alpha2", "alpha2")
    for method in METHODS:
        if method.name == wanted:
            return method
    raise ExplainError(f"there is no method {name!r}", hint=f"Methods: {', '.join(methods())}")


__all__ = ["METHODS", "Method", "find", "methods"]

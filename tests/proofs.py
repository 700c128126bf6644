"""Whether the checker of certificates alone notices that a package converts wrongly; ``mutate.py --certificate`` asks.

Not a test itself. Models are converted, and their certificates checked, without the model being run. Only whether the
function has changed at all is then seen by running both in float64. Prints one line::

    caught bn-sum-conv: the terms of a sum carry different scales
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from canonize.algebra.affine import EXACT
from canonize.errors import CanonizeError
from canonize.forms import chosen_forms
from canonize.inputs import Inputs, normalise
from canonize.pipeline import Options, rewritten
from canonize.verify import measure
from canonize.verify.certificate import Certificate, certificate_of, check
from tests import checks, models
from tests.zoo.case import Case

# So many models in which the slip shows and is noticed are enough; one in which it is not noticed is a miss.
ENOUGH = 3
# Of the outputs' scale, in float64 with weights that were never rounded: more is another function.
CHANGED = 1e-9
_EVERY = 11
_FORMS = ("batch_norm_as_convolution", "dense_as_convolution", "plain_pooling")


def judged() -> str:
    """What comes of all the hard models."""
    noticed = refused = 0
    told = ""
    for case, strategy, forms in _conversions():
        try:
            changed, reason = _outcome(case, strategy, forms)
        except CanonizeError:
            refused += 1
            continue
        except Exception as error:  # whatever a slip breaks is loud
            refused += 1
            told = told or f"{type(error).__name__}: {str(error)[:80]}"
            continue
        if changed and not reason:
            return f"missed {case.name} ({strategy}{', forms' * bool(forms)})"
        if changed:
            noticed, told = noticed + 1, f"{case.name}: {reason}"
            if noticed == ENOUGH:
                break
    if noticed:
        return f"caught {told}"
    return f"{'loud' if told else 'same'} {told or f'{refused} refused'}"


def _conversions() -> Iterator[tuple[Case, str, tuple[str, ...]]]:
    """All models, those that stand far from each other first."""
    spread = itertools.chain.from_iterable(models.CASES[start::_EVERY] for start in range(_EVERY))
    for number, case in enumerate(spread):
        yield case, "threshold", ()
        if number % 3 == 0:
            yield case, "untangle", ()
        if number % 5 == 0:
            yield case, "threshold", _FORMS


def _outcome(case: Case, strategy: str, forms: tuple[str, ...]) -> tuple[bool, str]:
    """Whether a model's conversion computes something else, and what the checker says against it."""
    inputs: Inputs = normalise(checks.draw(case.inputs, 2, dtype=torch.float64))
    model = case.model(torch.float64).eval()
    network, _ = rewritten(model, inputs, "symbolic_trace", Options(strategy, (), chosen_forms(forms)))
    assert network.before is not None
    built = network.build()
    written = certificate_of(network.before, network, built).to_json()
    proof = check(network.before, built, Certificate.from_json(written))
    against = [u for u in proof.unproven if u.broken or not forms]
    one, other = _outputs(model, inputs), _outputs(built, inputs)
    changed = len(one) != len(other) or any(map(_differ, one, other))
    return changed, against[0].reason if against else ""


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    own = inputs.map(Tensor.clone)  # a forward may write into them
    with torch.no_grad():
        return measure.tensors(model(*own.args, **own.kwargs))


def _differ(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    one, other = one.to(EXACT), other.to(EXACT)
    scale = float(one.abs().nan_to_num().max()) if one.numel() else 0.0
    return not torch.allclose(one, other, rtol=0, atol=CHANGED * max(scale, 1e-300), equal_nan=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(judged())

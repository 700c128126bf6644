"""Every small hard model, canonized in float64: same function, same gradients, no batch norm, original untouched."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests import checks, models
from tests.zoo import precision
from tests.zoo.case import Case, conv, norm

ALL = [pytest.param(case, id=case.name) for case in models.CASES]


@pytest.mark.parametrize("case", ALL)
def test_canonized(case: Case) -> None:
    checks.assert_canonized(case.model(torch.float64), case.inputs, batch_norms=case.batch_norms)


@pytest.mark.parametrize("case", ALL)
def test_the_case_itself(case: Case) -> None:
    """A case proves something only if it runs, is reproducible, depends on its input and stays finite."""
    model, twin = case.model(torch.float64), case.model(torch.float64)
    before = checks.snapshot(model)
    for batch in (2, 3):
        arguments = checks.draw(case.inputs, batch)
        outputs, gradients = checks.evaluate(model.eval(), arguments)
        again, _ = checks.evaluate(twin.eval(), arguments)
        assert checks.relative_error(again, outputs) == 0.0
        floating = [
            leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        assert all(1e-3 < leaf.abs().max().item() < 1e6 for leaf in floating)
        assert all(leaf.abs().max().item() > 1e-8 for leaf in gradients)
        assert all(leaf.shape[0] == batch for leaf in floating if leaf.dim())
    model.train(case.training)
    checks.assert_untouched(model, before)


@pytest.mark.parametrize("case", ALL)
def test_fates_do_not_depend_on_the_precision(case: Case) -> None:
    """What is planned in float64 on the way to a float32 model must not get in the way of inferring its shapes."""
    import canonize

    fates = []
    for dtype in (torch.float64, torch.float32):
        example = checks.draw(case.inputs, 2, dtype=dtype)
        report = canonize.canonize(case.model(dtype), example, verify=False).report
        fates.append([(fate.name, fate.outcome) for fate in report.affines])
    assert fates[0] == fates[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in precision.CASES])
def test_low_precision(case: Case, dtype: torch.dtype) -> None:
    """As close to the exact function as the original is, up to a small factor and a few roundings."""
    import canonize

    model = case.model(dtype)
    exact = case.model(dtype).double()
    example = checks.draw(case.inputs, 2, dtype=dtype)
    canonical = canonize.canonize(model, example)
    noise, error = [], []
    for batch, seed in ((2, 0), (3, 1), (2, 2), (3, 3), (1, 4), (4, 5)):
        arguments = checks.draw(case.inputs, batch, seed, dtype)
        wanted = exact(*pytree.tree_map(lambda leaf: leaf.double(), arguments))
        noise.append(checks.relative_error(model(*arguments).double(), wanted))
        error.append(checks.relative_error(canonical(*arguments).double(), wanted))
    # Over all draws: in one of them the original may be right by luck.
    assert statistics.mean(error) <= 3.0 * statistics.mean(noise) + 8.0 * torch.finfo(dtype).eps
    assert checks.count_batch_norms(canonical, example) == 0
    assert {leaf.dtype for leaf in canonical.parameters()} == {dtype}


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_hook_of_the_users_is_refused_by_name(register: str) -> None:
    """A trace would drop it, and nobody but its author knows what it is for."""
    import canonize

    model = nn.Sequential(conv(3, 6), norm(6), nn.ReLU()).eval()
    getattr(model[1], register)(lambda *_: None)
    with pytest.raises(canonize.CaptureError, match=r"^1: it carries a .*hook"):
        canonize.canonize(model, torch.zeros(1, 3, 5, 7))


def test_there_are_enough_of_every_theme() -> None:
    themes = [theme for case in models.CASES for theme in case.themes]
    wanted = (
        "fold absorb movement activation functional reuse fork residual concat padding inputs outputs training shape"
    )
    assert [theme for theme in wanted.split() if themes.count(theme) < 5] == []

"""C1 to C5 as code: each finding on a minimal model, none on its canonical form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import canonize
from canonize.canonical import WHY, findings
from canonize.nn import Offset
from canonize.report import Finding
from tests import checks, models
from tests.statistics import harden
from tests.zoo.case import conv, image, norm, vector, wired

Sequential = nn.Sequential
Build = Callable[[], nn.Module]

# name: (rule, where, a word of what, model, inputs)
FINDINGS: dict[str, tuple[str, str, str, Build, Any]] = {
    "C1-a-batch-norm": ("C1", "1", "BatchNorm2d", lambda: Sequential(conv(3, 4), norm(4), nn.Sigmoid()), image(3)),
    "C1-a-functional-batch-norm": (
        "C1",
        "batch_norm",
        "batch_norm",
        lambda: wired(
            lambda m, x: F.batch_norm(m.conv(x), m.mean, m.var), conv=conv(3, 4), mean=torch.randn(4), var=torch.rand(4)
        ),
        image(3),
    ),
    "C1-a-norm-of-features": (
        "C1",
        "1",
        "BatchNorm1d",
        lambda: Sequential(nn.Linear(4, 3), norm(3, 1), nn.Tanh()),
        vector(4),
    ),
    "C2-two-dense-layers": (
        "C2",
        "1",
        "0 and 1 are one linear layer",
        lambda: Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Tanh()),
        vector(4),
    ),
    "C2-a-pointwise-convolution-behind": (
        "C2",
        "1",
        "0 and 1 are one linear layer",
        lambda: Sequential(conv(3, 4), conv(4, 4, 1), nn.Tanh()),
        image(3),
    ),
    "C3-a-function": ("C3", "relu", "functional call relu", lambda: wired(lambda m, x: F.relu(x)), image(3)),
    "C3-a-method": ("C3", "tanh", "tensor method tanh", lambda: wired(lambda m, x: x.tanh()), image(3)),
    "C3-a-plain-sum": ("C3", "add", "add", lambda: wired(lambda m, x: m.act(x) + x, act=nn.Tanh()), image(3)),
    "C3-a-concatenation": ("C3", "cat", "cat", lambda: wired(lambda m, x: torch.cat([x, x], 1)), image(3)),
    "C3-a-reshape": ("C3", "view", "view", lambda: wired(lambda m, x: x.view(x.shape[0], -1)), image(3)),
    "C3-a-slice": ("C3", "getitem", "getitem", lambda: wired(lambda m, x: x[:, :2]), image(3)),
    "C3-a-module-called-twice": (
        "C3",
        "conv",
        "called 2 times",
        lambda: wired(lambda m, x: m.conv(m.conv(x)), conv=conv(3, 3)),
        image(3),
    ),
    "C3-in-place": ("C3", "1", "works in place", lambda: Sequential(conv(3, 4), nn.ReLU(inplace=True)), image(3)),
    "C4-dropout": ("C4", "1", "dropout", lambda: Sequential(conv(3, 4), nn.Dropout2d(), nn.ReLU()), image(3)),
    "C4-functional-dropout": (
        "C4",
        "dropout",
        "dropout",
        lambda: wired(lambda m, x: F.dropout(m.conv(x), 0.5, m.training), conv=conv(3, 4)),
        image(3),
    ),
    "C5-an-identity": ("C5", "1", "Identity", lambda: Sequential(conv(3, 4), nn.Identity(), nn.ReLU()), image(3)),
    "C5-a-module-that-is-never-called": (
        "C5",
        "spare",
        "never called",
        lambda: wired(lambda m, x: m.conv(x), conv=conv(3, 4), spare=conv(3, 4)),
        image(3),
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_found(name: str) -> None:
    rule, where, what, build, inputs = FINDINGS[name]
    model = harden(build()).eval()
    before = checks.snapshot(model)
    report = canonize.inspect(model, checks.draw(inputs, 2, dtype=torch.float32))
    checks.assert_untouched(model, before)
    found = [f for f in report.findings if (f.rule, f.where) == (rule, where)]
    assert len(found) == 1, report.findings
    assert what in found[0].what
    assert found[0].why == WHY[rule]
    assert not report.canonical
    assert report.verdict is None
    assert report.rewrites == []


@pytest.mark.parametrize("name", FINDINGS)
def test_not_found_in_the_canonical_form(name: str) -> None:
    _, _, _, build, inputs = FINDINGS[name]
    model = harden(build()).eval()
    example = checks.draw(inputs, 2, dtype=torch.float32)
    canonical = canonize.canonize(model, example)
    assert canonical.report.findings == []
    assert findings(canonical) == []
    again = canonize.inspect(canonical, example)
    assert again.findings == [], again
    assert again.canonical


def test_only_what_is_there_is_found() -> None:
    """Each minimal model of a rule breaks that rule; one that breaks none has no findings."""
    model = Sequential(conv(3, 4, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 2)).eval()
    assert canonize.inspect(model, torch.randn(2, 3, 5, 7)).findings == []


def test_statistics_of_the_batch_are_found_and_stay() -> None:
    """C4: they depend on the batch, so nothing can fold them; the report says so."""
    model = harden(Sequential(conv(3, 4), norm(4, track_running_stats=False), nn.ReLU())).eval()
    for report in (
        canonize.inspect(model, torch.randn(2, 3, 5, 7)),
        canonize.canonize(model, torch.randn(2, 3, 5, 7)).report,
    ):
        (finding,) = report.findings
        assert (finding.rule, finding.where) == ("C4", "1")
        assert "batch statistics depend on the input" in finding.reason


def test_a_parametrization_is_found_and_goes() -> None:
    model = Sequential(nn.utils.parametrizations.weight_norm(conv(3, 4)), nn.ReLU()).eval()
    canonical = canonize.canonize(model, torch.randn(2, 3, 5, 7))
    assert canonical.report.findings == []
    assert not any(nn.utils.parametrize.is_parametrized(layer) for layer in canonical.modules())
    root = Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    found = findings(torch.fx.GraphModule(root, _graph_calling("0")))
    assert [(f.rule, f.where) for f in found] == [("C4", "0")]


def _graph_calling(*names: str) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    value = graph.placeholder("x")
    for name in names:
        value = graph.call_module(name, (value,))
    graph.output(value)
    return graph


def test_affines_of_other_norms_are_found() -> None:
    for layer in (nn.LayerNorm(7), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)):
        model = harden(Sequential(conv(3, 4, padding=1), layer, nn.ReLU())).eval()
        found = [(f.rule, f.where) for f in canonize.inspect(model, torch.randn(2, 3, 5, 7)).findings]
        assert ("C1", "1") in found
        assert canonize.canonize(model, torch.randn(2, 3, 5, 7)).report.findings == []
    plain = Sequential(conv(3, 4, padding=1), nn.InstanceNorm2d(4), nn.ReLU()).eval()
    assert canonize.canonize(plain, torch.randn(2, 3, 5, 7)).report.findings == []


def test_a_loose_scale_is_found_and_a_position_embedding_is_not() -> None:
    channels = torch.fx.GraphModule(Sequential(Offset(torch.rand(1, 4, 1, 1), None)), _graph_calling("0"))
    assert [(f.rule, f.where) for f in findings(channels)] == [("C1", "0")]
    shift = torch.fx.GraphModule(Sequential(Offset(None, torch.rand(1, 4, 1, 1))), _graph_calling("0"))
    assert [(f.rule, f.where) for f in findings(shift)] == [("C1", "0")]
    positions = torch.fx.GraphModule(Sequential(Offset(None, torch.rand(1, 4, 5, 7))), _graph_calling("0"))
    assert findings(positions) == []


def test_stacked_layers_are_found_only_where_one_would_do() -> None:
    """C2: not where one layer would be larger, padding lies between, or somebody else reads the first one."""
    kept: list[nn.Module] = [
        Sequential(nn.Linear(8, 2), nn.Linear(2, 8)),  # low rank
        Sequential(conv(3, 4), conv(4, 4)),  # neither is pointwise
        Sequential(conv(3, 4, 1), conv(4, 4, padding=1)),  # behind the first bias stand zeros
        Sequential(conv(4, 4, 1), conv(4, 4, 1, groups=2)),
        Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
        wired(lambda m, x: (lambda y: m.b(y) + y)(m.a(x)), a=nn.Linear(4, 4), b=nn.Linear(4, 4)),
    ]
    for model in kept:
        first: Any = next(layer for layer in model.modules() if hasattr(layer, "weight"))
        dims = first.weight.ndim - 2
        inputs = torch.randn(2, first.weight.shape[1], *(5, 7)[:dims])
        assert "C2" not in {f.rule for f in canonize.inspect(model.eval(), inputs).findings}


def test_the_reason_of_what_canonize_left_is_in_the_finding() -> None:
    model = harden(Sequential(norm(4), nn.Sigmoid())).eval()
    canonical = canonize.canonize(model, torch.randn(2, 4, 5, 7), skip=("last_resort",), verify=False)
    (finding,) = canonical.report.findings
    assert finding == Finding("C1", "0", "a fixed scale or shift", WHY["C1"], canonical.report.affines[0].reason)
    assert "linear_bn" in finding.reason


@pytest.mark.parametrize("name", ["fold-conv-2d", "sequential-in-sequential", "dict-output", "identities-everywhere"])
def test_inspecting_a_canonical_model_finds_what_its_report_says(name: str) -> None:
    case = models.BY_NAME[name]
    example = checks.draw(case.inputs, 2, dtype=torch.float32)
    canonical = canonize.canonize(case.model(), example, verify=False)
    assert canonize.inspect(canonical, example).findings == canonical.report.findings


def test_the_example_of_each_rule() -> None:
    assert {entry[0] for entry in FINDINGS.values()} == set(WHY)


def test_what_is_found_says_where_in_a_nested_model() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = norm(3)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.norm(x)) + x

    report = canonize.inspect(Sequential(Sequential(Block())).eval(), torch.randn(2, 3, 5, 7))
    assert {(f.rule, f.where) for f in report.findings} == {
        ("C1", "0.0.norm"),
        ("C3", "0.0.relu"),
        ("C3", "0.0.add"),
    }


def test_a_batch_norm_that_cannot_be_read_is_no_secret() -> None:
    """It is called as a function, with a mean that is computed."""
    bn = harden(norm(4))

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        found: Tensor = m.last(F.batch_norm(y, m.bn.running_mean * x.mean(), m.bn.running_var))
        return found

    model = wired(forward, conv=conv(3, 4), bn=bn, last=conv(4, 3)).eval()
    report = canonize.canonize(model, torch.randn(2, 3, 8, 8)).report
    left = [fate for fate in report.affines if fate.kind == "F.batch_norm"]
    assert [fate.outcome for fate in left] == ["left"]
    assert "computed" in left[0].reason
    assert not report.canonical
    assert any(f.rule == "C1" and "batch_norm" in f.what for f in report.findings)


def test_behind_attention_and_a_view_a_batch_norm_is_read() -> None:
    """Its strides are not those of a contiguous tensor, and torch.export writes a view."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.bn, self.conv = nn.Linear(4, 4), harden(nn.BatchNorm1d(4)), nn.Conv1d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            if type(x).__name__ == "SizedProxy":
                raise TypeError("not by proxies")
            q = x.view(x.shape[0], x.shape[1], 2, 2).transpose(1, 2)
            h = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)
            found: Tensor = self.conv(self.bn(self.dense(h).transpose(1, 2)))
            return found

    report = canonize.canonize(Attention().eval(), torch.randn(2, 5, 4)).report
    assert report.captured_by == "torch.export"
    assert [fate.outcome for fate in report.affines] == ["absorbed"]
    (finding,) = report.findings
    assert "scaled_dot_product_attention" in finding.what and "no rule is known" in finding.what

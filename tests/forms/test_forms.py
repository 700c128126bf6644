"""Optional forms: exact, off unless asked for, refused with a reason where they do not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import canonize
from canonize.errors import CanonizeError
from canonize.nn import ThreshReLU
from tests.checks import assert_same_function
from tests.statistics import harden


class Vgg(nn.Module):
    """Convolutions, adaptive pooling, a flattening spelled in one of several ways, and dense layers."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], pool: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
        self.pool = pool
        self.classifier = nn.Sequential(
            nn.Linear(4 * 2 * 3, 6),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(6, 5),
            nn.Sigmoid(),
            nn.Linear(5, 2),
        )
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(x))))


def vgg(flatten: Callable[[Tensor], Tensor] | None = None, pool: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return harden(Vgg(flatten or nn.Flatten(), pool or nn.AdaptiveAvgPool2d((2, 3)))).double().eval()


def images(batch: int, size: tuple[int, int] = (4, 6)) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64)


FLATTEN: dict[str, Callable[[Tensor], Tensor]] = {
    "module": nn.Flatten(),
    "function": lambda x: torch.flatten(x, 1),
    "view": lambda x: x.view(x.size(0), -1),
    "reshape": lambda x: x.reshape(-1, 24),
}


@pytest.mark.parametrize("spelling", FLATTEN)
def test_dense_layers_become_convolutions(spelling: str) -> None:
    model = vgg(FLATTEN[spelling])
    canonical = canonize.canonize(model, images(2), forms=["dense_as_convolution"])
    assert_same_function(model, canonical, images)
    assert not any(isinstance(m, nn.Linear) for m in canonical.modules())
    first = canonical.get_submodule("classifier.0")
    assert isinstance(first, nn.Conv2d) and first.kernel_size == (2, 3)
    assert isinstance(canonical.get_submodule("classifier.4"), nn.Conv2d)
    names = [str(node.target) for node in canonical.graph.nodes if node.op == "call_module"]
    assert [name for name in names if isinstance(canonical.get_submodule(name), nn.Flatten)] == [names[-1]]
    assert canonical.report.canonical, str(canonical.report)


def test_weights_that_nothing_touched_stay_shared() -> None:
    model = vgg()
    canonical = canonize.canonize(model, images(2), forms=["dense_as_convolution"])
    last = canonical.get_submodule("classifier.6")
    assert last.weight.data_ptr() == model.get_submodule("classifier.6").weight.data_ptr()


def test_thresholds_move_before_the_flattening() -> None:
    # Two readers, so that the BatchNorm goes through the rectifier and leaves a threshold.
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm1d(24), nn.Linear(24, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return y, self.fc(torch.relu(self.bn(torch.flatten(y, 1))))

    torch.manual_seed(1)
    model = harden(Forked()).double().eval()
    inputs = lambda n: torch.randn(n, 3, 2, 3, dtype=torch.float64)  # noqa: E731
    canonical = canonize.canonize(model, inputs(2), forms=["dense_as_convolution"])
    (threshold,) = (m for m in canonical.modules() if isinstance(m, ThreshReLU))
    assert threshold.lower is not None and threshold.lower.shape == (1, 4, 2, 3)
    assert_same_function(model, canonical, inputs)


def test_vectors_are_images_of_one_pixel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    inputs = lambda n: torch.randn(n, 4, dtype=torch.float64)  # noqa: E731
    canonical = canonize.canonize(model, inputs(2), forms=["dense_as_convolution"])
    assert_same_function(model, canonical, inputs)
    kinds = [type(m) for m in canonical.children()]
    assert sum(kind is nn.Conv2d for kind in kinds) == 2
    assert nn.Linear not in kinds


def test_a_dense_layer_over_a_sequence_stays_and_says_why() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).double().eval()
    canonical = canonize.canonize(model, torch.randn(2, 5, 4, dtype=torch.float64), forms=["dense_as_convolution"])
    assert any(isinstance(m, nn.Linear) for m in canonical.modules())
    assert [(r.pattern, r.anchor) for r in canonical.report.refusals] == [("dense_as_convolution", "0")]


def test_adaptive_pooling_becomes_plain_and_refuses_other_sizes() -> None:
    model = vgg()
    canonical = canonize.canonize(model, images(2), forms=["plain_pooling"])
    pool = canonical.get_submodule("pool")
    assert isinstance(pool, nn.AvgPool2d) and pool.kernel_size == (2, 2)
    assert_same_function(model, canonical, images)
    assert any("pools over 4x6 positions" in note for note in canonical.report.notes)
    model(images(1, (8, 6)))  # the original takes it
    with pytest.raises(AssertionError, match=r"4x6 positions.*Canonize again"):
        canonical(images(1, (8, 6)))


def test_maximum_pooling_too() -> None:
    model = vgg(pool=nn.AdaptiveMaxPool2d((2, 3)))
    canonical = canonize.canonize(model, images(2), forms=["plain_pooling"])
    assert isinstance(canonical.get_submodule("pool"), nn.MaxPool2d)
    assert_same_function(model, canonical, images)


def test_windows_that_overlap_stay_adaptive_and_say_why() -> None:
    model = vgg()
    canonical = canonize.canonize(model, images(2, (5, 6)), forms=["plain_pooling"])
    assert isinstance(canonical.get_submodule("pool"), nn.AdaptiveAvgPool2d)
    (refusal,) = [r for r in canonical.report.refusals if r.pattern == "plain_pooling"]
    assert refusal.anchor == "pool" and "5x6" in refusal.reason
    assert_same_function(model, canonical, lambda n: images(n, (5, 6)))
    assert_same_function(model, canonical, images)  # and any other size still goes


def test_batch_norms_become_depthwise_convolutions() -> None:
    model = vgg()
    canonical = canonize.canonize(model, images(2), forms=["batch_norm_as_convolution"])
    layer = canonical.get_submodule("features.1")
    assert isinstance(layer, nn.Conv2d) and layer.groups == 4 and layer.kernel_size == (1, 1)
    assert torch.equal(canonical.get_submodule("features.0").weight, model.get_submodule("features.0").weight)
    assert {fate.outcome for fate in canonical.report.affines} == {"last resort"}
    assert all("asked for" in fate.reason for fate in canonical.report.affines)
    assert_same_function(model, canonical, images)


def test_all_at_once() -> None:
    model = vgg()
    names = ["batch_norm_as_convolution", "plain_pooling", "dense_as_convolution"]
    assert_same_function(model, canonize.canonize(model, images(2), forms=names), images)


def test_a_form_that_there_is_not() -> None:
    with pytest.raises(CanonizeError, match="there is no form 'x'"):
        canonize.canonize(vgg(), images(2), forms=["x"])

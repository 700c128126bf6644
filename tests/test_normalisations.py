"""LayerNorm, GroupNorm, InstanceNorm: the affine goes to the layers behind, or stays where it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

import canonize
from tests import checks


def _hard(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 0.3, 0.7) if parameter.ndim == 1 else None
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data[0], parameter.data[1] = 0.0, 1e-30
    return model


def _canonized(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> fx.GraphModule:
    torch.manual_seed(7)
    model = _hard(build()).double().eval()

    def inputs(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, *shape, dtype=torch.float64),)

    before = checks.snapshot(model)
    canonical = canonize.canonize(model, inputs(2), verify=False)
    checks.assert_untouched(model, before)
    checks.assert_same_function(model, canonical, inputs, tolerance=1e-10)
    return canonical


class _Attention(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        attended: Tensor = self.attention(y, y, y, need_weights=False)[0]
        return attended


class _Query(_Attention):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        attended: Tensor = self.attention(y, x, torch.tanh(x), need_weights=False)[0]
        return attended


FOLDS = {
    "layer-norm-dense": (lambda: nn.Sequential(nn.LayerNorm(6, eps=1e-3), nn.Linear(6, 3)), (4, 6)),
    "layer-norm-rectifier-dense": (lambda: nn.Sequential(nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)), (4, 6)),
    "group-norm-conv": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3, padding=1)), (4, 6, 5)),
    "group-norm-rectifier-conv": (
        lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)), (4, 6, 5),
    ),
    "instance-norm-conv": (
        lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 3, 3, padding=1)), (4, 6, 5),
    ),
    "attention": (lambda: _Attention(True), (5, 8)),
    "attention-without-bias": (lambda: _Attention(False), (5, 8)),
    "attention-query-only": (lambda: _Query(True), (5, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDS)
def test_folds(name: str) -> None:
    build, shape = FOLDS[name]
    canonical = _canonized(build, shape)
    assert [fate.outcome for fate in canonical.report.affines] == ["absorbed"], str(canonical.report)
    norms = [m for m in canonical.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm | nn.InstanceNorm2d)]
    assert len(norms) == 1
    assert norms[0].weight is None
    assert norms[0].bias is None
    # Attention that is not opened is the one thing without a rule.
    closed = [n for n, m in canonical.named_modules() if isinstance(m, nn.MultiheadAttention)]
    assert [found.where for found in canonical.report.findings] == closed, str(canonical.report)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: nn.Sequential(nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)), (4, 6)),
        (lambda: nn.LayerNorm(6), (4, 6)),
        (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Sigmoid()), (4, 6, 5)),
    ],
    ids=["smooth-activation", "on-the-output", "group-norm"],
)
def test_an_explicit_layer_where_nobody_takes_it(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    canonical = _canonized(build, shape)
    (norm,) = (m for m in canonical.modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm))
    assert norm.weight is None
    assert [fate.outcome for fate in canonical.report.affines] == ["last resort"]
    assert canonical.report.affines[0].reason
    assert canonical.report.findings == []


def test_stays_where_there_is_no_layer_for_it() -> None:
    canonical = _canonized(lambda: nn.Sequential(nn.LayerNorm((5, 6)), nn.Linear(6, 3)), (5, 6))
    (norm,) = (m for m in canonical.modules() if isinstance(m, nn.LayerNorm))
    assert isinstance(norm.weight, nn.Parameter)
    assert [finding.rule for finding in canonical.report.findings] == ["C1"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("window", [4, 3], ids=["fits", "padded"])
def test_swin(version: int, window: int) -> None:
    """Its attention is one function; windows are shifted, padded and masked; version 2 normalises behind the layers."""
    from canonize.compat import import_torchvision

    import_torchvision()
    from torchvision.models import swin_transformer as swin

    kinds = {1: {}, 2: {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}}[version]
    torch.manual_seed(3)
    model = swin.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [window, window], num_classes=10, **kinds)
    model = _hard(model).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    canonical = canonize.canonize(model, images, verify=False)
    assert checks.relative_error(canonical(images), model(images)) <= 1e-10
    assert all(m.weight is None for m in canonical.modules() if isinstance(m, nn.LayerNorm))
    assert canonical.report.canonical, str(canonical.report)
    explicit = [fate.name for fate in canonical.report.affines if fate.outcome != "absorbed"]
    if version == 1:
        assert explicit == ["features.0.2"], "the one that a residual sum and another norm read"
    if window == 3:
        other = torch.randn(1, 3, 40, 48, dtype=torch.float64)
        assert checks.relative_error(canonical(other), model(other)) <= 1e-10


def test_swin_for_video() -> None:
    from canonize.compat import import_torchvision

    import_torchvision()
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    torch.manual_seed(3)
    model = _hard(SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [4, 3, 3], num_classes=10)).double().eval()
    clips = torch.randn(1, 3, 8, 32, 32, dtype=torch.float64)
    canonical = canonize.canonize(model, clips, verify=False)
    assert checks.relative_error(canonical(clips), model(clips)) <= 1e-10
    assert [fate.name for fate in canonical.report.affines if fate.outcome != "absorbed"] == ["patch_embed.norm"]
    assert canonical.report.canonical, str(canonical.report)

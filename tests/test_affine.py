"""The algebra of frozen affines, on tensors."""

from __future__ import annotations

import pytest
import sympy
import torch
from torch import Tensor, nn

from canonize.algebra.affine import EXACT, Affine, Statistics, batch_norm, batch_norms
from tests.patterns.symbols import is_zero
from tests.statistics import harden


def _affine(scale: list[float], shift: list[float]) -> Affine:
    return Affine(*(torch.tensor(part, dtype=EXACT).reshape(1, -1, 1, 1) for part in (scale, shift)))


def _apply(affine: Affine, value: Tensor) -> Tensor:
    return affine.scale * value + affine.shift


@pytest.mark.parametrize("eps", [1e-5, 3e-3, 2.0])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_batch_norm_is_an_affine(dims: int, affine: bool, eps: float) -> None:
    layer = harden(getattr(nn, f"BatchNorm{dims}d")(6, eps=eps, affine=affine)).double().eval()
    value = torch.randn(2, 6, *(3, 4, 5)[:dims], dtype=EXACT)
    frozen = batch_norm(layer.weight, layer.bias, layer.running_mean, layer.running_var, eps, dims + 2)
    assert frozen.scale.shape == frozen.shift.shape == (1, 6, *(1,) * dims)
    torch.testing.assert_close(_apply(frozen, value), layer(value), rtol=1e-12, atol=1e-12)
    assert not frozen.scale.requires_grad


def test_batch_norm_of_features() -> None:
    layer = harden(nn.BatchNorm1d(6)).double().eval()
    frozen = batch_norm(layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps, 2)
    value = torch.randn(3, 6, dtype=EXACT)
    torch.testing.assert_close(_apply(frozen, value), layer(value), rtol=1e-12, atol=1e-12)


def test_batch_norm_is_computed_in_float64() -> None:
    layer = harden(nn.BatchNorm2d(6, eps=3e-3)).eval()
    frozen = batch_norm(layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps, 4)
    wanted = layer.weight.double() / (layer.running_var.double() + layer.eps).sqrt()
    torch.testing.assert_close(frozen.scale.flatten(), wanted.detach(), rtol=1e-14, atol=0.0)
    assert frozen.scale.dtype == frozen.shift.dtype == EXACT


def test_batch_norm_with_only_one_of_weight_and_bias() -> None:
    mean, var = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 9.0])
    frozen = batch_norm(torch.tensor([2.0, -3.0]), None, mean, var, 0.0, 2)
    torch.testing.assert_close(frozen.scale, torch.tensor([[1.0, -1.0]], dtype=EXACT))
    torch.testing.assert_close(frozen.shift, torch.tensor([[-1.0, -2.0]], dtype=EXACT))
    frozen = batch_norm(None, torch.tensor([5.0, 6.0]), mean, var, 0.0, 2)
    torch.testing.assert_close(frozen.shift, torch.tensor([[4.5, 6.0 + 2.0 / 3.0]], dtype=EXACT))


def test_symbolic_equation_2() -> None:
    x, gamma, beta, mean = sympy.symbols("x gamma beta mu", real=True)
    var, eps = sympy.symbols("var eps", positive=True)
    s = gamma / sympy.sqrt(var + eps)
    t = beta - mean * s
    assert is_zero((x - mean) / sympy.sqrt(var + eps) * gamma + beta - (s * x + t))


def test_symbolic_composition() -> None:
    x, s1, t1, s2, t2 = sympy.symbols("x s1 t1 s2 t2", real=True)
    assert is_zero(s2 * (s1 * x + t1) + t2 - ((s2 * s1) * x + (s2 * t1 + t2)))


def test_after_composes_in_order() -> None:
    first, second = _affine([2.0, -1.0], [1.0, 3.0]), _affine([0.5, 4.0], [-1.0, 2.0])
    value = torch.randn(2, 2, 3, 3, dtype=EXACT)
    torch.testing.assert_close(_apply(second.after(first), value), _apply(second, _apply(first, value)))
    torch.testing.assert_close(_apply(first.after(second), value), _apply(first, _apply(second, value)))


def test_after_broadcasts_along_other_dimensions() -> None:
    channels = _affine([2.0, -1.0], [1.0, 3.0])
    columns = Affine(
        torch.tensor([1.0, 2.0, 3.0], dtype=EXACT).reshape(1, 1, 1, 3), torch.zeros(1, 1, 1, 1, dtype=EXACT)
    )
    both = columns.after(channels)
    assert both.varying() == {1, 3}
    value = torch.randn(2, 2, 4, 3, dtype=EXACT)
    torch.testing.assert_close(_apply(both, value), _apply(columns, _apply(channels, value)))


def test_identity() -> None:
    identity = Affine.identity(3)
    assert identity.ndim == 3
    assert identity.is_identity
    assert identity.is_linear
    assert identity.is_finite
    assert not _affine([1.0, 1.0], [0.0, 1e-300]).is_identity
    assert not _affine([1.0, 1.0 + 1e-15], [0.0, 0.0]).is_identity
    assert _affine([1.0, -2.0], [0.0, -0.0]).is_linear


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_is_finite(bad: float) -> None:
    assert not _affine([1.0, bad], [0.0, 0.0]).is_finite
    assert not _affine([1.0, 1.0], [0.0, bad]).is_finite


def test_compress_keeps_what_differs() -> None:
    scale = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], dtype=EXACT)
    shift = torch.tensor([[3.0, 3.0], [3.0, 3.0], [4.0, 4.0]], dtype=EXACT)
    small = Affine(scale, shift).compress()
    assert small.scale.tolist() == [[1.0, 2.0]]
    assert small.shift.tolist() == [[3.0], [3.0], [4.0]]
    assert small.varying() == {0, 1}
    assert small.varies_along(0)
    assert Affine(torch.full((2, 3), 5.0), torch.zeros(2, 1)).compress().varying() == set()


def test_compress_does_not_stop_at_equal_neighbours() -> None:
    scale = torch.tensor([1.0, 1.0, 2.0], dtype=EXACT)
    assert Affine(scale, torch.zeros(1, dtype=EXACT)).compress().scale.tolist() == [1.0, 1.0, 2.0]


def test_vectors_and_expanded() -> None:
    affine = Affine(torch.tensor([[[2.0]]], dtype=EXACT), torch.tensor([1.0, 2.0, 3.0], dtype=EXACT).reshape(1, 3, 1))
    scale, shift = affine.vectors(1, 3)
    assert (scale.tolist(), shift.tolist()) == ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0])
    scale, shift = affine.expanded((2, 3, 4))
    assert scale.shape == shift.shape == (2, 3, 4)
    assert bool((shift[:, 2] == 3.0).all())


# --------------------------------------------------------------------------------------------- dead channels

DEAD = {
    # (scale, shift, dtype): whether the channel is constant as far as the dtype can tell
    (0.0, 0.0, torch.float64): True,
    (0.0, 1.0, torch.float32): True,
    (-0.0, 1.0, torch.float32): True,
    (1.0, 0.0, torch.float32): False,
    (1e-30, 0.0, torch.float32): False,
    (1e-30, 1.0, torch.float64): False,  # z is -1e30, which float64 holds
    (-1e-30, 1.0, torch.float64): False,
    (1e-30, 1.0, torch.float32): False,  # z fits float32, too
    (1e-39, 1.0, torch.float32): True,  # z overflows, and s x drowns in t
    (-1e-39, -1.0, torch.float32): True,
    (1e-39, 1e-3, torch.float32): False,  # z is -1e36
    (1e-30, 1.0, torch.float16): True,
    (1e-5, 1.0, torch.float16): False,  # overflows, but 65504 s is no rounding error
    (1e-9, 1.0, torch.float16): True,
    (1e-300, 1e10, torch.float64): True,
}


@pytest.mark.parametrize(("scale", "shift", "dtype"), DEAD, ids=str)
def test_dead(scale: float, shift: float, dtype: torch.dtype) -> None:
    affine = _affine([scale, 1.0], [shift, 1.0])
    assert affine.dead(dtype).flatten().tolist() == [DEAD[scale, shift, dtype], False]


def test_dead_has_the_broadcast_shape() -> None:
    affine = Affine(torch.zeros(1, 1, 1, dtype=EXACT), torch.ones(1, 3, 1, dtype=EXACT))
    assert affine.dead(torch.float32).shape == (1, 3, 1)


def test_what_drowns_really_drowns() -> None:
    """For every activation a network can have, s x + t rounds to t."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        largest = min(torch.finfo(dtype).max, 1e12)
        for scale in torch.logspace(-45, 0, 300, dtype=EXACT).tolist():
            if bool(_affine([scale], [1.0]).dead(dtype).all()):
                rounded = (torch.tensor(scale, dtype=EXACT) * largest + 1.0).to(dtype)
                assert abs(float(rounded) - 1.0) <= torch.finfo(dtype).eps


def test_zero() -> None:
    zero = _affine([2.0, -4.0], [1.0, 3.0]).zero(torch.float32)
    assert zero is not None
    assert zero.flatten().tolist() == [-0.5, 0.75]
    assert _affine([2.0, 0.0], [1.0, 0.0]).zero(torch.float64) is None
    assert _affine([1e-39], [1.0]).zero(torch.float32) is None
    assert _affine([1e-39], [1.0]).zero(torch.float64) is not None
    assert _affine([2.0, 4.0], [1.0, 2.0]).zero(torch.float32).shape == (1, 1, 1, 1)
    linear = _affine([2.0, -3.0], [0.0, 0.0]).zero(torch.float16)
    assert linear is not None
    assert not linear.any()


def test_many_batch_norms_at_once_are_each_of_them() -> None:
    layers = [harden(nn.BatchNorm1d(n, eps=1e-5 * (n + 1), affine=n != 4)).double().eval() for n in (6, 1, 4, 0, 3)]
    layers[0].weight.data.fill_(0.5)
    layers[0].running_var.fill_(2.0)  # one scale, several shifts
    layers[-1].running_mean[1] = torch.nan
    held = [Statistics(it.weight, it.bias, it.running_mean, it.running_var, it.eps) for it in layers]
    for layer, (affine, finite) in zip(layers, batch_norms(held), strict=True):
        one = batch_norm(layer.weight, layer.bias, layer.running_mean, layer.running_var, layer.eps, 4)
        assert finite == one.is_finite
        for ours, alone in zip(
            (affine.unsqueezed(4).scale, affine.unsqueezed(4).shift),
            (one.compress().scale, one.compress().shift),
            strict=True,
        ):
            torch.testing.assert_close(ours, alone, rtol=0, atol=0, equal_nan=True)
    assert batch_norms([]) == []

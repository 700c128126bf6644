"""Modules called twice, tensors read twice, tied weights, residual sums: where data flow and registration disagree."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


def _bn_shared_by_two_convs(m: Any, x: Tensor) -> Any:
    return F.relu(m.bn(m.a(x))) + torch.tanh(m.bn(m.b(x)))


def _conv_read_by_two_bns(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return F.relu(m.bn1(y)) + F.relu(m.bn2(y))


def _conv_read_by_a_bn_and_a_skip(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return F.relu(m.bn(y)) * y


def _conv_read_by_the_output_too(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return m.bn(y).relu(), y


def _bn_read_by_two_convs(m: Any, x: Tensor) -> Any:
    y = m.bn(x)
    return m.a(y) + m.b(y.relu())


def _bn_read_by_a_conv_and_a_skip(m: Any, x: Tensor) -> Any:
    y = m.bn(x).relu()
    return m.conv(y) + y


def _bn_read_by_a_conv_and_the_output(m: Any, x: Tensor) -> Any:
    y = m.bn(m.pre(x).relu())
    return m.conv(y), y


def _bn_read_by_a_conv_and_a_norm(m: Any, x: Tensor) -> Any:
    y = m.bn(x)
    return m.conv(y) + m.layer_norm(y)


def _residual(m: Any, x: Tensor) -> Any:
    y = F.relu(m.bn1(m.conv1(x)))
    return F.relu(m.bn2(m.conv2(y)) + x)


def _residual_in_place(m: Any, x: Tensor) -> Any:
    y = m.relu(m.bn1(m.conv1(x)))
    y = m.bn2(m.conv2(y))
    y += x
    return m.relu(y)


def _residual_add_method(m: Any, x: Tensor) -> Any:
    y = m.bn2(m.conv2(m.relu(m.bn1(m.conv1(x)))))
    return m.relu(y.add_(x, alpha=0.5))


def _scaled_in_place(m: Any, x: Tensor) -> Any:
    y = m.conv1(x)
    y *= 0.25
    y = m.bn1(y)
    return m.conv2(y.mul_(2.0).relu_())


def _view_written_through(m: Any, x: Tensor) -> Any:
    # `half` is a window on `y`: changing it changes what conv2 reads.
    y = m.bn1(m.conv1(x))
    half = y[:, :3]
    half.mul_(0.5)
    return m.conv2(y.relu())


def _downsampling_residual(m: Any, x: Tensor) -> Any:
    y = m.bn2(m.conv2(F.relu(m.bn1(m.conv1(x)))))
    return F.relu(y + m.down_bn(m.down(x)))


def _preactivation_residual(m: Any, x: Tensor) -> Any:
    y = m.conv1(F.relu(m.bn1(x)))
    y = m.conv2(F.relu(m.bn2(y)))
    x = x + y
    z = m.conv3(F.relu(m.bn3(x)))
    return m.fc((F.relu(m.bn4(x + z))).mean((2, 3)))


def _preactivation_shared_shortcut(m: Any, x: Tensor) -> Any:
    # Wide ResNet: where the shape changes, the activated input feeds both the shortcut and the branch.
    active = F.relu(m.bn1(x))
    return m.shortcut(active) + m.conv2(F.relu(m.bn2(m.conv1(active))))


def _bns_before_a_sum_then_linear(m: Any, x: Tensor) -> Any:
    return m.conv(m.bn1(x) + m.bn2(x.tanh()))


def _bn_before_a_difference(m: Any, x: Tensor) -> Any:
    return m.conv(m.bn1(x.tanh()) - 2 * m.bn2(x))


def _bn_of_a_sum(m: Any, x: Tensor) -> Any:
    return F.relu(m.bn(m.a(x) + m.b(x)))


def _bn_of_a_sum_with_a_skip(m: Any, x: Tensor) -> Any:
    return F.relu(m.bn(m.a(x) + x))


def _long_skip(m: Any, x: Tensor) -> Any:
    y = m.bn1(m.conv1(x))
    z = m.bn2(m.conv2(F.relu(y)))
    return m.conv3(F.relu(z + y)) + y.mean()


def _loop(m: Any, x: Tensor) -> Any:
    for _ in range(3):
        x = F.relu(m.bn(m.conv(x)))
    return x


def _unrolled_norms(m: Any, x: Tensor) -> Any:
    # Recurrent batch norm: one convolution, its own statistics at each step.
    for bn in m.bns:
        x = bn(m.conv(x)).relu()
    return x


def _tied(m: Any, x: Tensor) -> Any:
    return m.b(F.relu(m.bn(m.a(x))))


def _tied_build() -> nn.Module:
    model = wired(_tied, a=conv(6, 6, padding=1), bn=norm(6), b=conv(6, 6, padding=1))
    model.b.weight = model.a.weight  # type: ignore[union-attr]
    return model


def _autoencoder_build() -> nn.Module:
    return wired(
        lambda m, x: F.linear(F.relu(m.bn(m.encode(x))), m.encode.weight.t()), encode=nn.Linear(5, 6), bn=norm(6, 1)
    )


def _tied_norms_build() -> nn.Module:
    model = Sequential(conv(6, 6), norm(6), nn.ReLU(), conv(6, 6), norm(6), nn.ReLU())
    model[4].weight, model[4].bias = model[1].weight, model[1].bias
    return model


def _same_module_two_names() -> nn.Module:
    block = Sequential(conv(6, 6, padding=1), norm(6), nn.ReLU())
    return wired(lambda m, x: m.second(m.first(x)), first=block, second=block)


def _in_place_on_the_input(m: Any, x: Tensor) -> Any:
    return m.conv(m.bn(x.mul_(2.0)).relu_())


def _pair(forward: Any, **modules: nn.Module) -> nn.Module:
    pair: dict[str, nn.Module] = {"conv1": conv(6, 6, padding=1), "bn1": norm(6), "relu": nn.ReLU(inplace=True)}
    return wired(forward, **pair, conv2=conv(6, 6, padding=1, bias=False), bn2=norm(6, eps=0.1), **modules)


def _case(name: str, build: Any, channels: int, *themes: str, **options: Any) -> Case:
    return Case(name, build, image(channels), themes=("graph", *themes), **options)


CASES: list[Case] = [
    _case(
        "conv-called-twice",
        lambda: wired(
            lambda m, x: m.bn2(m.conv(F.relu(m.bn1(m.conv(x))))).relu(),
            conv=conv(6, 6, padding=1),
            bn1=norm(6),
            bn2=norm(6),
        ),
        6,
        "reuse",
    ),
    _case(
        "conv-called-twice-one-norm",
        lambda: wired(lambda m, x: m.bn(m.conv(x)).relu() + m.conv(x.tanh()), conv=conv(6, 6, padding=1), bn=norm(6)),
        6,
        "reuse",
    ),
    _case(
        "conv-called-twice-on-the-same",
        lambda: wired(lambda m, x: m.bn(m.conv(x)).relu() - m.conv(x), conv=conv(6, 6, padding=1), bn=norm(6)),
        6,
        "reuse",
    ),
    _case(
        "bn-called-twice",
        lambda: wired(lambda m, x: m.bn(m.b(F.relu(m.bn(m.a(x))))).relu(), a=conv(6, 6), b=conv(6, 6), bn=norm(6)),
        6,
        "reuse",
    ),
    _case("bn-called-twice-in-a-row", lambda: Sequential(*_repeated(norm(6), 2), conv(6, 4, padding=1)), 6, "reuse"),
    _case(
        "bn-called-twice-forwards",
        lambda: wired(
            lambda m, x: m.b(m.bn(m.a(m.bn(x).relu())).relu()), a=conv(6, 6, padding=1), b=conv(6, 3), bn=norm(6)
        ),
        6,
        "reuse",
    ),
    _case(
        "relu-called-thrice",
        lambda: wired(
            lambda m, x: m.relu(m.b(m.relu(m.bn(m.a(m.relu(x)))))),
            a=conv(6, 6),
            b=conv(6, 6),
            bn=norm(6),
            relu=nn.ReLU(inplace=True),
        ),
        6,
        "reuse",
        "in place",
    ),
    _case("block-called-in-a-loop", lambda: wired(_loop, conv=conv(6, 6, padding=1), bn=norm(6)), 6, "reuse"),
    _case(
        "one-conv-many-norms",
        lambda: wired(
            _unrolled_norms, conv=conv(6, 6, padding=1), bns=nn.ModuleList(norm(6, eps=e) for e in (1e-3, 0.1, 1.0))
        ),
        6,
        "reuse",
    ),
    _case("same-module-under-two-names", _same_module_two_names, 6, "reuse", "tied"),
    _case(
        "bn-shared-by-two-convs",
        lambda: wired(_bn_shared_by_two_convs, a=conv(3, 6), b=conv(3, 6), bn=norm(6)),
        3,
        "reuse",
    ),
    _case(
        "conv-read-by-two-bns",
        lambda: wired(_conv_read_by_two_bns, conv=conv(3, 6), bn1=norm(6), bn2=norm(6, eps=0.3)),
        3,
        "fork",
    ),
    _case(
        "conv-read-by-a-bn-and-a-skip",
        lambda: wired(_conv_read_by_a_bn_and_a_skip, conv=conv(3, 6), bn=norm(6)),
        3,
        "fork",
    ),
    _case(
        "conv-read-by-the-output-too",
        lambda: wired(_conv_read_by_the_output_too, conv=conv(3, 6), bn=norm(6)),
        3,
        "fork",
        "outputs",
    ),
    _case(
        "bn-read-by-two-convs",
        lambda: wired(_bn_read_by_two_convs, bn=norm(6), a=conv(6, 4, padding=1), b=conv(6, 4, padding=1)),
        6,
        "fork",
    ),
    _case(
        "bn-read-by-a-conv-and-a-skip",
        lambda: wired(_bn_read_by_a_conv_and_a_skip, bn=norm(6), conv=conv(6, 6, padding=1)),
        6,
        "fork",
    ),
    _case(
        "bn-read-by-a-conv-and-the-output",
        lambda: wired(_bn_read_by_a_conv_and_the_output, pre=conv(3, 6), bn=norm(6), conv=conv(6, 4)),
        3,
        "fork",
        "outputs",
    ),
    _case(
        "bn-read-by-a-conv-and-a-layer-norm",
        lambda: wired(
            _bn_read_by_a_conv_and_a_norm, bn=norm(6), conv=conv(6, 6, padding=1), layer_norm=nn.LayerNorm((5, 7))
        ),
        6,
        "fork",
    ),
    _case("tied-convolutions", _tied_build, 6, "tied"),
    _case("tied-norms", _tied_norms_build, 6, "tied"),
    Case("tied-autoencoder", _autoencoder_build, vector(5), themes=("graph", "tied", "linear", "functional")),
    _case("residual", lambda: _pair(_residual), 6, "residual"),
    _case("residual-in-place", lambda: _pair(_residual_in_place), 6, "residual", "in place", "reuse"),
    _case("residual-add-with-alpha", lambda: _pair(_residual_add_method), 6, "residual", "in place"),
    _case("scaled-in-place", lambda: _pair(_scaled_in_place), 6, "in place"),
    _case("written-through-a-view", lambda: _pair(_view_written_through), 6, "in place"),
    _case("written-into-the-input", lambda: wired(_in_place_on_the_input, bn=norm(6), conv=conv(6, 3)), 6, "in place"),
    _case(
        "residual-downsampling",
        lambda: _pair(_downsampling_residual, down=conv(6, 6, 1), down_bn=norm(6)),
        6,
        "residual",
    ),
    _case(
        "preactivation-residual",
        lambda: _pair(
            _preactivation_residual, conv3=conv(6, 6, padding=1), bn3=norm(6), bn4=norm(6), fc=nn.Linear(6, 3)
        ),
        6,
        "residual",
    ),
    _case(
        "preactivation-shared-shortcut",
        lambda: _pair(_preactivation_shared_shortcut, shortcut=conv(6, 6, 1)),
        6,
        "residual",
        "fork",
    ),
    _case(
        "bns-before-a-sum-then-conv",
        lambda: wired(_bns_before_a_sum_then_linear, bn1=norm(6), bn2=norm(6), conv=conv(6, 3, padding=1)),
        6,
        "residual",
    ),
    _case(
        "bns-before-a-difference-then-conv",
        lambda: wired(_bn_before_a_difference, bn1=norm(6), bn2=norm(6), conv=conv(6, 3, padding=1)),
        6,
        "residual",
    ),
    _case(
        "bn-of-a-sum-of-convs",
        lambda: wired(_bn_of_a_sum, a=conv(6, 6, padding=1), b=conv(6, 6, 1, bias=False), bn=norm(6)),
        6,
        "residual",
    ),
    _case(
        "bn-of-a-sum-with-a-skip",
        lambda: wired(_bn_of_a_sum_with_a_skip, a=conv(6, 6, padding=1), bn=norm(6)),
        6,
        "residual",
    ),
    _case("long-skip", lambda: _pair(_long_skip, conv3=conv(6, 6, padding=1)), 6, "residual", "fork"),
]


def _repeated(module: nn.Module, times: int) -> list[nn.Module]:
    return [module] * times

"""Shape control flow, several inputs and outputs, keyword arguments, containers, recurrent layers, idle modules."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.case import Case, conv, image, norm, vector, wired

Sequential = nn.Sequential


class Prediction(NamedTuple):
    """Outputs by name."""

    logits: Tensor
    features: Tensor


def _wide_enough(m: Any, x: Tensor) -> Any:
    if x.shape[-1] > 4:
        x = F.max_pool2d(x, (1, 2))
    return F.relu(m.bn(m.conv(x)))


def _asserted(m: Any, x: Tensor) -> Any:
    assert x.dim() == 4, "images only"
    assert x.shape[1] == 3, f"expected 3 channels, not {x.shape[1]}"
    return m.conv2(m.bn(m.conv(x)).relu())


def _raises(m: Any, x: Tensor) -> Any:
    batch, _, height, width = x.shape
    if height < 3 or width < 3:
        raise ValueError("too small")
    return m.bn(m.conv(x)).relu().view(batch, -1)


def _shape_loop(m: Any, x: Tensor) -> Any:
    while x.shape[-1] > 2:
        x = F.avg_pool2d(m.bn(m.conv(x)).relu(), (1, 2))
    return x


def _training_switch(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x)).relu()
    if m.training:
        return y, m.auxiliary(y)
    return y


def _as_dict(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x))
    return {"out": m.head(F.relu(y)), "features": [y, F.relu(y)]}


def _as_tuple(m: Any, x: Tensor) -> Any:
    y = m.bn(x)
    return m.conv(y), (y, x)


def _as_named_tuple(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x)).relu()
    return Prediction(m.head(y), y)


def _with_a_number(m: Any, x: Tensor) -> Any:
    return {"out": m.bn(m.conv(x)).relu(), "stride": 2, "name": "level 1"}


def _two_inputs(m: Any, x: Tensor, y: Tensor) -> Any:
    return F.relu(m.bn(m.conv(x) + m.fc(y)[:, :, None, None]))


def _scalar_input(m: Any, x: Tensor, factor: float) -> Any:
    return m.bn(m.conv(x) * factor).relu()


def _input_list(m: Any, levels: list[Tensor]) -> Any:
    return [m.bn(m.conv(level)).relu() for level in levels]


def _input_dict(m: Any, batch: dict[str, Tensor]) -> Any:
    return m.fc(torch.cat([m.bn(batch["image"].mean((2, 3))), batch["more"]], 1))


def _optional(m: Any, x: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Any:
    y = m.bn(m.conv(x)).relu() * scale
    return y if mask is None else y * mask


def _mixed_types(m: Any, tokens: Tensor, lengths: Tensor) -> Any:
    y = m.bn(m.embedding(tokens).transpose(1, 2)).transpose(1, 2)
    visible = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    return m.fc((y * visible[..., None]).sum(1) / lengths[:, None])


def _recurrent(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x)).relu().flatten(2).transpose(1, 2)
    outputs, (hidden, _) = m.lstm(y)
    return m.head(outputs[:, -1] + hidden[-1])


def _recurrent_then_norm(m: Any, x: Tensor) -> Any:
    outputs, _ = m.gru(x)
    return m.head(m.bn(outputs[:, -1]).relu())


def _transformer(m: Any, x: Tensor) -> Any:
    tokens = m.bn(m.patch(x)).flatten(2).transpose(1, 2)
    return m.head(m.encoder(torch.cat([m.token.expand(x.shape[0], -1, -1), tokens], 1))[:, 0])


def _multihead(m: Any, x: Tensor) -> Any:
    tokens = m.bn(x).transpose(1, 2)
    attended, _ = m.attention(tokens, tokens, tokens, need_weights=False)
    return m.head(attended)


def _nested_loops(m: Any, x: Tensor) -> Any:
    for stage in m.stages:
        for name, layer in stage.items():
            x = layer(x) if name != "skip" else x + layer(x)
    return x


def _numbered(m: Any, x: Tensor) -> Any:
    for index in range(2):
        x = getattr(m, f"norm{index}")(getattr(m, f"conv{index}")(x)).relu()
    return x


def _constants(m: Any, x: Tensor) -> Any:
    ones = torch.ones(x.shape[0], 1, x.shape[2], x.shape[3], dtype=x.dtype, device=x.device)
    return m.conv(torch.cat([m.bn(x), ones], 1))


def _idle(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x))
    unused = m.other(y).sum()  # noqa: F841 the graph must lose it
    return F.relu(y.contiguous().view_as(y)) * 1.0 + 0.0


def _indexed(m: Any, x: Tensor) -> Any:
    features = [x, m.bn(m.conv(x)).relu()]
    return m.head(features[-1][..., ::2][:, [0, 2, 4]])


def _device_and_dtype(m: Any, x: Tensor) -> Any:
    y = m.bn(m.conv(x)).relu()
    return (y.to(x.dtype).to(x.device).float() if x.dtype == torch.float16 else y).type_as(x)


def _case(name: str, build: Any, channels: int, *themes: str, **options: Any) -> Case:
    return Case(name, build, image(channels), themes=("control", *themes), **options)


def _images(*channels: int) -> Any:
    return lambda batch: tuple(torch.randn(batch, n, 5, 7) for n in channels)


def _layers(**more: nn.Module) -> dict[str, nn.Module]:
    return {"conv": conv(3, 6), "bn": norm(6), **more}


def _tokens(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randint(0, 9, (batch, 4)), torch.randint(1, 5, (batch,))


def _stages() -> nn.Module:
    def stage() -> nn.ModuleDict:
        return nn.ModuleDict({"conv": conv(6, 6, padding=1), "norm": norm(6), "act": nn.ReLU(), "skip": norm(6)})

    return wired(_nested_loops, stages=nn.ModuleList([stage(), stage()]))


def _with_unused() -> nn.Module:
    return wired(
        lambda m, x: m.bn(m.conv(x)).relu(), **_layers(spare=norm(3), head=nn.Linear(5, 2), idle=nn.Identity())
    )


def _transformer_layers() -> dict[str, Any]:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, norm_first=True)
    return {
        "encoder": nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        "token": nn.Parameter(torch.randn(1, 1, 6)),
    }


CASES: list[Case] = [
    _case("if-on-the-width", lambda: wired(_wide_enough, **_layers()), 3, "shape"),
    _case("asserts-on-shapes", lambda: wired(_asserted, **_layers(conv2=conv(6, 2))), 3, "shape"),
    _case("raises-on-shapes", lambda: wired(_raises, **_layers()), 3, "shape"),
    _case(
        "while-on-the-width", lambda: wired(_shape_loop, conv=conv(6, 6, padding=1), bn=norm(6)), 6, "shape", "reuse"
    ),
    _case("training-switch", lambda: wired(_training_switch, **_layers(auxiliary=conv(6, 2))), 3, "training"),
    _case(
        "training-switch-in-training",
        lambda: wired(_training_switch, **_layers(auxiliary=conv(6, 2))),
        3,
        "training",
        training=True,
    ),
    _case("dict-output", lambda: wired(_as_dict, **_layers(head=conv(6, 2))), 3, "outputs", "output"),
    _case("tuple-output", lambda: wired(_as_tuple, bn=norm(6), conv=conv(6, 2, padding=1)), 6, "outputs", "output"),
    _case("named-tuple-output", lambda: wired(_as_named_tuple, **_layers(head=conv(6, 2))), 3, "outputs"),
    _case("output-with-numbers", lambda: wired(_with_a_number, **_layers()), 3, "outputs"),
    Case(
        "two-inputs",
        lambda: wired(_two_inputs, conv=conv(3, 6), fc=nn.Linear(4, 6), bn=norm(6)),
        lambda b: (torch.randn(b, 3, 5, 7), torch.randn(b, 4)),
        themes=("control", "inputs"),
    ),
    Case(
        "same-norm-on-two-inputs",
        lambda: wired(lambda m, x, y: m.conv(m.bn(x)) - m.conv(m.bn(y)), bn=norm(6), conv=conv(6, 3, padding=1)),
        _images(6, 6),
        themes=("control", "inputs", "reuse"),
    ),
    Case(
        "number-as-input",
        lambda: wired(_scalar_input, **_layers()),
        lambda b: (torch.randn(b, 3, 5, 7), 0.5),
        themes=("control", "inputs"),
    ),
    Case(
        "list-as-input",
        lambda: wired(_input_list, **_layers()),
        lambda b: ([torch.randn(b, 3, 5, 7), torch.randn(b, 3, 4, 3)],),
        themes=("control", "inputs", "outputs"),
    ),
    Case(
        "dict-as-input",
        lambda: wired(_input_dict, bn=norm(6, 1), fc=nn.Linear(10, 3)),
        lambda b: ({"image": torch.randn(b, 6, 5, 7), "more": torch.randn(b, 4)},),
        themes=("control", "inputs"),
    ),
    Case(
        "keyword-arguments",
        lambda: wired(_optional, **_layers()),
        lambda b: ((torch.randn(b, 3, 5, 7),), {"mask": torch.rand(b, 1, 3, 5), "scale": 0.5}),
        themes=("control", "inputs"),
    ),
    Case(
        "optional-argument-left-out",
        lambda: wired(_optional, **_layers()),
        lambda b: (torch.randn(b, 3, 5, 7),),
        themes=("control", "inputs"),
    ),
    Case(
        "keyword-arguments-only",
        lambda: wired(_two_inputs, conv=conv(3, 6), fc=nn.Linear(4, 6), bn=norm(6)),
        lambda b: ((), {"y": torch.randn(b, 4), "x": torch.randn(b, 3, 5, 7)}),
        themes=("control", "inputs"),
    ),
    Case(
        "tokens-and-lengths",
        lambda: wired(_mixed_types, embedding=nn.Embedding(9, 6), bn=norm(6, 1), fc=nn.Linear(6, 3)),
        _tokens,
        themes=("control", "inputs", "embedding"),
    ),
    Case(
        "embedding-then-norm",
        lambda: Sequential(nn.Embedding(9, 5), norm(4, 1), nn.Flatten(), nn.Linear(20, 3)),
        lambda b: (torch.randint(0, 9, (b, 4)),),
        themes=("control", "embedding"),
    ),
    _case(
        "lstm-behind-norm",
        lambda: wired(_recurrent, **_layers(lstm=nn.LSTM(6, 4, batch_first=True), head=nn.Linear(4, 2))),
        3,
        "recurrent",
    ),
    Case(
        "norm-behind-gru",
        lambda: wired(
            _recurrent_then_norm,
            gru=nn.GRU(5, 6, 2, batch_first=True, dropout=0.2),
            bn=norm(6, 1),
            head=nn.Linear(6, 2),
        ),
        image(4, 5),
        themes=("control", "recurrent"),
    ),
    _case(
        "transformer-on-a-normed-stem",
        lambda: wired(
            _transformer, patch=conv(3, 6, 2, stride=2), bn=norm(6), head=nn.Linear(6, 2), **_transformer_layers()
        ),
        3,
        "attention",
    ),
    Case(
        "multihead-attention-behind-norm",
        lambda: wired(
            _multihead, bn=norm(6, 1), attention=nn.MultiheadAttention(6, 2, batch_first=True), head=nn.Linear(6, 2)
        ),
        image(6, 5),
        themes=("control", "attention"),
    ),
    _case("module-lists-and-dicts", _stages, 6, "containers"),
    _case(
        "modules-by-number",
        lambda: wired(_numbered, conv0=conv(3, 6), norm0=norm(6), conv1=conv(6, 6), norm1=norm(6)),
        3,
        "containers",
    ),
    _case(
        "sequential-in-sequential",
        lambda: Sequential(
            Sequential(Sequential(conv(3, 6)), norm(6)), Sequential(nn.ReLU(), Sequential(norm(6), conv(6, 2)))
        ),
        3,
        "containers",
    ),
    _case(
        "sequential-sliced",
        lambda: wired(lambda m, x: m.body[1:](m.body[:1](x)), body=Sequential(conv(3, 6), norm(6), nn.ReLU())),
        3,
        "containers",
    ),
    _case("unused-modules", _with_unused, 3, "idle"),
    _case("idle-operations", lambda: wired(_idle, **_layers(other=conv(6, 2))), 3, "idle"),
    _case(
        "identities-everywhere",
        lambda: Sequential(
            nn.Identity(), norm(6), nn.Identity(), nn.ReLU(), nn.Dropout(0.0), nn.Identity(), conv(6, 2), nn.Identity()
        ),
        6,
        "idle",
    ),
    _case(
        "dropouts-of-every-kind",
        lambda: Sequential(
            conv(3, 6),
            nn.Dropout2d(),
            norm(6),
            nn.AlphaDropout(),
            nn.ReLU(),
            nn.FeatureAlphaDropout(),
            norm(6),
            nn.Dropout(inplace=True),
            conv(6, 2),
        ),
        3,
        "dropout",
    ),
    _case(
        "constants-made-in-the-forward", lambda: wired(_constants, bn=norm(6), conv=conv(7, 2, padding=1)), 6, "shape"
    ),
    _case("indexed", lambda: wired(_indexed, **_layers(head=conv(3, 2, 2))), 3, "slice"),
    _case("asks-for-device-and-dtype", lambda: wired(_device_and_dtype, **_layers()), 3, "shape"),
    Case(
        "norm-on-a-matrix-of-one-feature",
        lambda: Sequential(nn.Linear(4, 1), norm(1, 1), nn.Sigmoid()),
        vector(4),
        themes=("control", "linear"),
        hardening={"tiny": False, "zero": False},
    ),
]

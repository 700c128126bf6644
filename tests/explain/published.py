"""The canonizations of Pahde et al. 2023, written once more from their equations: zennit canonizers, hooks, by hand.

They work on copies of the papers' five architectures, where BatchNorms are left as identities, thresholds are forward
hooks, residual sums and gates get their rule by exchanging ``forward``. Nothing here is shared with canonize.
`tests/explain/fourteen.py` prints how alike the heatmaps are: all fourteen, at 64 pixels, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.efficientnet import MBConv
from torchvision.ops.misc import SqueezeExcitation
from zennit.attribution import Gradient
from zennit.composites import (
    EpsilonAlpha2Beta1,
    EpsilonPlus,
    ExcitationBackprop,
    SpecialFirstLayerMapComposite,
    layer_map_base,
)
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import AlphaBeta, ZBox
from zennit.torchvision import ResNetCanonizer
from zennit.types import Convolution, Linear

Affine = tuple[Tensor, Tensor]
METHODS: dict[str, Callable[[], Composite]] = {
    "epsilon-plus": EpsilonPlus,
    "alpha2-beta1": EpsilonAlpha2Beta1,
    "excitation-backprop": ExcitationBackprop,
}


def lrp_custom(low: Tensor, high: Tensor) -> Composite:
    """Alpha1-beta0 in every linear layer, box in the first convolution: how Relation Networks are explained."""
    every = [*layer_map_base(1e-6), (Linear, AlphaBeta(alpha=1, beta=0))]
    return SpecialFirstLayerMapComposite(every, [(Convolution, ZBox(low=low, high=high))])


def relevance(model: nn.Module, composite: Composite, image: Tensor, targets: Tensor, *others: Any) -> Tensor:
    """Relevance of an image by zennit."""

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, value: Tensor) -> Tensor:
            output: Tensor = self.model(value, *others)
            return output

    with Gradient(model=Asked(), composite=composite) as attributor:
        found = attributor(image, lambda output: F.one_hot(targets, output.shape[1]).to(output))[1]
    return torch.as_tensor(found).detach()


# ------------------------------------------------------------------------------------- BatchNorms behind convolutions


def affine_of(norm: Any) -> Affine:
    """Scale and shift of ``norm(x) = s * x + t``."""
    scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias.detach() - norm.running_mean * scale


def emptied(norm: Any) -> None:
    """Make a BatchNorm the identity, its eps included."""
    for values, constant in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        nn.init.constant_(values, constant)
    norm.eps = 0.0


def merged(linear: Any, norm: Any) -> None:
    """Eq. 3: ``W' = s W``, ``b' = s b + t``."""
    scale, shift = affine_of(norm)
    linear.weight = nn.Parameter(linear.weight.detach() * scale.view(-1, *[1] * (linear.weight.ndim - 1)))
    old = torch.zeros_like(shift) if linear.bias is None else linear.bias.detach()
    linear.bias = nn.Parameter(old * scale + shift)
    emptied(norm)


def merged_in_order(model: nn.Module) -> nn.Module:
    """A copy whose BatchNorms are merged into the layers registered in front of them: of a VGG, all there is to do."""
    model = copy.deepcopy(model)
    linear = None
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            linear = module
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and linear is not None:
            merged(linear, module)
    return model


def resnet(model: nn.Module) -> nn.Module:
    """A ResNet by zennit's own canonizer, with the eps that it leaves in each merged BatchNorm taken out."""
    model = copy.deepcopy(model)
    ResNetCanonizer().apply(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return model


# ---------------------------------------------------------------------------------------------------- EfficientNet


class SignalTakesAll(torch.autograd.Function):
    """A product whose relevance goes to the signal, all of it."""

    @staticmethod
    def forward(ctx: Any, signal: Tensor, gate: Tensor) -> Tensor:
        ctx.shape = gate.shape
        return signal * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient.new_zeros(ctx.shape)


def _summed(self: Any, input: Tensor) -> Tensor:
    result: Tensor = self.block(input)
    return self.residual(torch.stack([input, result], -1)) if self.use_res_connect else result


def _gated(self: Any, input: Tensor) -> Any:
    return SignalTakesAll.apply(input, self._scale(input))


def efficientnet(model: nn.Module) -> nn.Module:
    """An EfficientNet: sums as modules that zennit knows, gates that pass relevance to their signal."""
    model = merged_in_order(model)
    for module in list(model.modules()):
        if isinstance(module, MBConv):
            module.residual = Sum()
            module.forward = MethodType(_summed, module)
        elif isinstance(module, SqueezeExcitation):
            module.forward = MethodType(_gated, module)
    return model


# -------------------------------------------------------------------------------------------------------- DenseNet


class Threshold:
    """Eq. 7 as hooks of a ReLU: ``x`` where the BatchNorm in front were positive, else ``z = -t / s``.

    The first hook reads the input before zennit's own do, so that no rule of zennit's acts on it: the gradient does.
    """

    def __init__(self, rectifier: nn.Module, scale: Tensor, shift: Tensor) -> None:
        self.scale, self.shift = scale[:, None, None], shift[:, None, None]
        rectifier.inplace = False  # type: ignore[assignment]
        rectifier.register_forward_pre_hook(self.before)
        rectifier.register_forward_hook(self.behind)

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.read = inputs[0]

    def behind(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return torch.where(self.scale * self.read + self.shift > 0, self.read, -self.shift / self.scale)


class Dense(nn.Module):
    """A torchvision DenseNet with a head made of modules."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        self.features, self.classifier = model.features, model.classifier
        self.last, self.pool = nn.ReLU(), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.pool(self.last(self.features(x))).flatten(1))
        return output


def densenet(model: nn.Module) -> nn.Module:
    """Thresholds: BatchNorms behind convolutions merge into them, those in front of ReLUs go behind (Eqs. 4 and 7)."""
    dense = Dense(model)
    leaves = [module for module in dense.modules() if not any(True for _ in module.children())]
    for linear, norm in pairwise(leaves):
        fits = isinstance(linear, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        if fits and linear.out_channels == norm.num_features:
            merged(linear, norm)
    for place, norm in enumerate(leaves):
        if not isinstance(norm, nn.BatchNorm2d) or norm.eps == 0.0:
            continue
        if place + 1 < len(leaves) and isinstance(leaves[place + 1], nn.ReLU):
            rectifier, linear = leaves[place + 1], leaves[place + 2]
        else:  # the head's modules were registered later
            rectifier, linear = dense.last, dense.classifier
        scale, shift = affine_of(norm)
        Threshold(rectifier, scale, shift)
        weight: Tensor = linear.weight.detach()  # type: ignore[operator, union-attr, assignment]
        across = tuple(range(2, weight.ndim))
        moved = (weight.sum(across) if across else weight) @ shift
        old = 0 if linear.bias is None else linear.bias.detach()  # type: ignore[operator, union-attr]
        linear.bias = nn.Parameter(old + moved)
        linear.weight = nn.Parameter(weight * scale.view(1, -1, *[1] * (weight.ndim - 2)))
        emptied(norm)
    return dense


@dataclass
class Producer:
    """What writes some of the channels that BatchNorms read: a convolution, perhaps with pooling behind, or neither."""

    name: str
    conv: Any
    channels: int
    pooled: bool = False


class Untangled(nn.Module):
    """The other published DenseNet: a copy of each producer for each of its readers, with the reader's BatchNorm in it.

    What comes out of the first max-pooling has no producer that could take a BatchNorm: those that read it become
    thresholds. Average pooling is a bare function, so that the gradient applies.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        model = copy.deepcopy(model)
        features = model.features
        merged(features.conv0, features.norm0)
        self.layers = nn.ModuleDict({"stem": nn.Sequential(features.conv0, nn.ReLU(), features.pool0)})
        self.steps: list[Callable[[dict[str, Tensor]], None]] = []
        producers = [Producer("stem", None, features.conv0.out_channels)]
        blocks = sum(name.startswith("denseblock") for name in model.features._modules)
        for block in range(1, blocks + 1):
            for place, layer in enumerate(getattr(features, f"denseblock{block}").values()):
                name = f"{block}_{place}"
                merged(layer.conv1, layer.norm2)
                self.layers[f"{name}_between"] = nn.ReLU()
                self.read(producers, layer.norm1, layer.conv1, name, f"{name}_between")
                producers.append(Producer(name, layer.conv2, layer.conv2.out_channels))
            after = getattr(features, f"transition{block}", None)
            if after is not None:
                self.read(producers, after.norm, None, f"after_{block}", None, taken_by=after.conv)
                producers = [Producer(f"after_{block}", after.conv, after.conv.out_channels, pooled=True)]
        self.read(producers, features.norm5, None, "head", None)
        self.classifier = model.classifier

    def read(
        self, producers: list[Producer], norm: Any, conv: Any, name: str, between: str | None, taken_by: Any = None
    ) -> None:
        """A BatchNorm -> ReLU -> convolution (or what comes later): its value is what the next producer reads."""
        scale, shift = affine_of(norm)
        rectifier = self.layers[f"{name}_relu"] = nn.ReLU()
        sources, producers = list(range(len(producers))), list(producers)
        whole = producers[0].conv is None
        start = 0
        for source, producer in zip(sources, producers, strict=True):
            part = slice(start, start + producer.channels)
            start += producer.channels
            if producer.conv is not None:
                own = copy.deepcopy(producer.conv)
                if not whole:
                    old = 0 if own.bias is None else own.bias.detach() * scale[part]
                    own.weight = nn.Parameter(own.weight.detach() * scale[part][:, None, None, None])
                    own.bias = nn.Parameter(old + shift[part])
                self.layers[f"{name}_from_{source}"] = own
        if whole:
            Threshold(rectifier, scale, shift)
            linear = conv if conv is not None else taken_by
            weight = linear.weight.detach()
            old = 0 if linear.bias is None else linear.bias.detach()
            linear.weight = nn.Parameter(weight * scale[None, :, None, None])
            linear.bias = nn.Parameter(old + weight.sum((2, 3)) @ shift)
        if conv is not None:
            self.layers[f"{name}_conv"] = conv

        def step(values: dict[str, Tensor]) -> None:
            parts = []
            for source, producer in zip(sources, producers, strict=True):
                value = values[producer.name]
                if producer.conv is not None:
                    value = self.layers[f"{name}_from_{source}"](value)
                parts.append(F.avg_pool2d(value, 2, 2) if producer.pooled else value)
            value = rectifier(torch.cat(parts, 1))
            if conv is not None:
                value = self.layers[between](self.layers[f"{name}_conv"](value))  # type: ignore[index]
            values[name] = value

        self.steps.append(step)

    def forward(self, image: Tensor) -> Tensor:
        values = {"stem": self.layers["stem"](image)}
        for step in self.steps:
            step(values)
        output: Tensor = self.classifier(F.adaptive_avg_pool2d(values["head"], 1).flatten(1))
        return output


# ------------------------------------------------------------------------------------------------ Relation Network


class Encoder(nn.Module):
    """Convolution, ReLU, BatchNorm, several times, BatchNorms in the convolutions behind (Eq. 4).

    Under zero padding the shift is missing at the border: what the layer pads with is what the BatchNorm made zero of.
    With ``mapped`` the shift is a map that a forward hook adds, outside of what zennit's rules see.
    """

    def __init__(self, encoder: Any, mapped: bool) -> None:
        super().__init__()
        self.convs, self.rectifiers = copy.deepcopy(encoder.convs), nn.ModuleList(nn.ReLU() for _ in encoder.convs)
        self.paddings: list[Tensor | None] = [None]
        for conv, norm in zip(self.convs[1:], encoder.norms, strict=False):
            scale, shift = affine_of(norm)
            weight = conv.weight.detach()
            conv.weight = nn.Parameter(weight * scale[None, :, None, None])
            if mapped:
                self.paddings.append(None)
                conv.register_forward_hook(_adds(weight, shift, conv.stride, conv.padding))
            else:
                conv.bias = nn.Parameter(conv.bias.detach() + weight.sum((2, 3)) @ shift)
                self.paddings.append((-shift / scale)[:, None, None])
                conv.padding = (0, 0)
        self.last = affine_of(encoder.norms[-1])

    def forward(self, image: Tensor) -> Tensor:
        for conv, rectifier, value in zip(self.convs, self.rectifiers, self.paddings, strict=True):
            if value is not None:
                inside = F.pad(torch.ones_like(image), (1, 1, 1, 1))
                image = F.pad(image, (1, 1, 1, 1)) + (1 - inside) * value
            image = rectifier(conv(image))
        return image


def _adds(weight: Tensor, shift: Tensor, stride: Any, padding: Any) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        constant = shift[None, :, None, None].expand(1, -1, *inputs[0].shape[2:])
        return output + F.conv2d(constant, weight, None, stride, padding)

    return add


class Summed(nn.Module):
    """The relations, summed where zennit has a rule for it; else the sum is a bare function."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.of = network

    def forward(self, image: Tensor, question: Tensor, lengths: Tensor) -> Tensor:
        network = self.of
        code = network.image_encoder(image)
        batch, channels, height, width = code.shape
        count = height * width
        objects = torch.cat((code, network.coordinates.expand(batch, -1, -1, -1)), 1)
        objects = objects.view(batch, channels + 2, count).permute(0, 2, 1)
        asked = network.question_encoder(question, lengths)[:, None, None, :].expand(-1, count, count, -1)
        one = objects.unsqueeze(1).expand(-1, count, -1, -1)
        two = objects.unsqueeze(2).expand(-1, -1, count, -1)
        pairs = torch.cat((one, two, asked), -1).reshape(batch * count * count, -1)
        relations = network.g(pairs).view(batch, count * count, -1)
        output: Tensor = network.f(network.total(relations))
        return output


def relation_network(model: Any, mapped: bool = False) -> nn.Module:
    """A Relation Network: of the layer that reads pairs, only columns of the image's code change."""
    network = copy.deepcopy(model)
    encoder = Encoder(network.image_encoder, mapped)
    network.image_encoder, network.total = encoder, Sum(1)
    scale, shift = encoder.last
    first, channels = network.g[0], len(scale)
    weight, bias = first.weight.detach().clone(), first.bias.detach().clone()
    for start in (0, channels + 2):
        columns = slice(start, start + channels)
        bias += weight[:, columns] @ shift
        weight[:, columns] *= scale
    first.weight, first.bias = nn.Parameter(weight), nn.Parameter(bias)
    for part in network.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = False
    return Summed(network)


CANONIZED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "VGG": merged_in_order,
    "ResNet": resnet,
    "EfficientNet": efficientnet,
    "DenseNet": densenet,
}

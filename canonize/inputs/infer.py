"""Find inputs that a model accepts, from what it says of itself and from its first layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from canonize.compat import no_warnings
from canonize.errors import InputError, cuts_in
from canonize.inputs.shape_wording import Shape, parse_shape, random_inputs
from canonize.inputs.values import Inputs, normalise
from canonize.twins.randomness import PrivateRandom
from canonize.twins.torchscript import constants, translated

# Two samples, so that a statistic taken over the batch shows.
BATCH = 2

LINES = tuple((length,) for length in (256, 1024, 128, 64, 32, 16, 100, 8, 512, 4096, 16000))
SQUARES = (224, 64, 32, 28, 299, 96, 8, 16, 48, 84, 112, 128, 160, 227, 256, 384, 448, 512)
IMAGES = tuple((side, side) for side in SQUARES)
VOLUMES = ((16, 112, 112), (16, 16, 16), (32, 32, 32), (8, 32, 32), (64, 64, 64), (4, 8, 8), (8, 224, 224))
TOKENS = 16

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

# How many different first layers are believed: the first one registered need not be the first one called.
FIRST_LAYERS = 5


def infer(model: nn.Module, candidates: Iterable[Any] | None = None) -> Inputs:
    """Find inputs that `model` accepts.

    Tried in turn on a copy in evaluation mode, until a forward runs: `candidates`; the size that the model itself
    states (timm's ``pretrained_cfg``, an ``image_size``, the ``example_shapes`` of an ONNX file); the usual sizes for
    the channels of its first layers.

    Parameters
    ----------
    model : nn.Module
        Neither changed nor run.
    candidates : iterable, optional
        Shapes (``"1x3x64x64"``) or example inputs to try first.

    Returns
    -------
    Inputs
        With batch size 2, on the device and in the precision of the parameters of `model`.

    Raises
    ------
    InputError
        If none runs.
    """
    from canonize.twins.copying import eval_twin  # which itself knows `Inputs`

    _refuse_lazy(model)
    trial = eval_twin(model)
    dtype, device = dtype_and_device(model)
    if isinstance(model, torch.jit.ScriptModule):
        model = translated(model)  # which has a signature, and layers that can be looked at
    count = max(1, _required_arguments(model))
    below = _smallest_vocabulary(model)

    def guesses() -> Iterator[Inputs]:
        for given in candidates or ():
            if isinstance(given, (str, Shape)):
                yield random_inputs(given, dtype, device)
            else:
                yield normalise(given)
        if getattr(model, "example_shapes", ()):  # of a file that says what it takes
            yield random_inputs(list(model.example_shapes), dtype, device, below=below)  # type: ignore[arg-type]
        for shape in shapes_to_try(model):
            yield random_inputs([shape] * count, dtype, device, below=below)

    tried: list[str] = []
    for guess in guesses():
        if _runs(trial, guess):
            return guess
        tried.append(guess.describe())
    raise InputError(
        f"no usual input fits the model (tried {len(tried)}, among them {'; '.join(tried[:3])})",
        hint="Say what it takes: example_inputs=torch.zeros(1, 3, 224, 224), say",
        shell="Say what it takes: --input 1x3x224x224, say",
    )


def from_shapes(model: nn.Module, shapes: Sequence[str | Shape]) -> Inputs:
    """Random inputs of the shapes given by hand, in the types `model` wants.

    A lone shape without a type becomes integers where the first layer is an embedding, else the model's precision.
    """
    listed = [parse_shape(s) if isinstance(s, str) else s for s in shapes]
    dtype, device = dtype_and_device(model)
    first = next((m for m in model.modules() if any(True for _ in m.parameters(recurse=False))), None)
    if len(listed) == 1 and listed[0].dtype is None and isinstance(first, _EMBEDDINGS):
        listed = [Shape(listed[0].dims, listed[0].name, torch.int64)]
    return random_inputs(listed, dtype, device, below=_smallest_vocabulary(model))


def _smallest_vocabulary(model: nn.Module) -> int:
    return min((m.num_embeddings for m in model.modules() if isinstance(m, _EMBEDDINGS)), default=2)


def dtype_and_device(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Precision and place of the first floating parameter or buffer; float32 on the CPU where there is none."""
    written = constants(model) if isinstance(model, torch.jit.ScriptModule) else []
    for tensor in (*model.parameters(), *model.buffers(), *written):
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return torch.float32, torch.device("cpu")


def shapes_to_try(model: nn.Module) -> Iterator[Shape]:
    """Shapes that `model` may take, each once, likeliest first."""
    layers = _first_layers(model)
    usual = [shape for layer in layers for shape in _usual_shapes(layer)]
    yield from dict.fromkeys([*_stated_shapes(model, layers), *usual, *_images(3, IMAGES), *_images(1, IMAGES)])


def _first_layers(model: nn.Module) -> list[nn.Module]:
    """The first few modules that hold parameters of their own and differ in what they take."""
    found: dict[tuple[Shape, ...], nn.Module] = {}
    for module in model.modules():
        shapes = tuple(_usual_shapes(module))
        if shapes and shapes not in found:
            found[shapes] = module
        if len(found) == FIRST_LAYERS:
            break
    return list(found.values())


def _stated_shapes(model: nn.Module, layers: list[nn.Module]) -> Iterator[Shape]:
    """What the model says of itself; with the channels of its first layer where the two differ."""
    convolution = next((m for m in layers if isinstance(m, nn.Conv2d)), None)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, Mapping) else getattr(config, "input_size", None)
    if isinstance(size, (tuple, list)) and len(size) == 3:
        if convolution is not None:
            yield from _images(convolution.in_channels, (tuple(size[1:]),))
        yield from _images(size[0], (tuple(size[1:]),))
    side = next((s for s in (getattr(model, n, None) for n in ("image_size", "img_size")) if s), None)
    if isinstance(side, int):
        side = (side, side)
    if isinstance(side, (tuple, list)) and len(side) == 2:
        yield from _images(convolution.in_channels if convolution is not None else 3, (tuple(side),))


def _usual_shapes(layer: nn.Module) -> list[Shape]:
    """The usual inputs of a model that begins with `layer`; none where the layer tells nothing."""
    if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        return _images(layer.in_channels, LINES)
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return _images(layer.in_channels, IMAGES)
    if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        return _images(layer.in_channels, VOLUMES)
    if isinstance(layer, nn.Linear):
        return _features(layer.in_features)
    if isinstance(layer, _EMBEDDINGS):
        return [Shape((BATCH, TOKENS), dtype=torch.int64), Shape((BATCH,), dtype=torch.int64)]
    if isinstance(layer, nn.BatchNorm1d):
        return [*_features(layer.num_features)[:1], *_images(layer.num_features, LINES)]
    if isinstance(layer, (nn.BatchNorm2d, nn.InstanceNorm2d, nn.SyncBatchNorm)):
        return _images(layer.num_features, IMAGES)
    if isinstance(layer, nn.BatchNorm3d):
        return _images(layer.num_features, VOLUMES)
    if isinstance(layer, nn.GroupNorm):
        return _images(layer.num_channels, IMAGES)
    if isinstance(layer, nn.LayerNorm):
        return [Shape((BATCH, *layer.normalized_shape)), Shape((BATCH, TOKENS, *layer.normalized_shape))]
    if isinstance(layer, nn.RNNBase):
        return _features(layer.input_size)[1:]
    if isinstance(layer, nn.MultiheadAttention):
        return _features(layer.embed_dim)[1:]
    return _shapes_of_weight(layer)


def _shapes_of_weight(layer: nn.Module) -> list[Shape]:
    """The same for a layer of unknown type, from the shape of a weight laid out as torch does."""
    weight = layer._parameters.get("weight")
    spaces = {3: LINES, 4: IMAGES, 5: VOLUMES}
    if weight is None or weight.dim() not in (2, *spaces):
        return []
    channels = weight.shape[1] * int(getattr(layer, "groups", 1) or 1)
    return _features(channels) if weight.dim() == 2 else _images(channels, spaces[weight.dim()])


def _images(channels: int, spaces: Iterable[tuple[int, ...]]) -> list[Shape]:
    return [Shape((BATCH, channels, *space)) for space in spaces]


def _features(count: int) -> list[Shape]:
    return [Shape((BATCH, count)), Shape((BATCH, TOKENS, count))]


def _required_arguments(model: nn.Module) -> int:
    """How many positional arguments the forward cannot do without."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)


def _refuse_lazy(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(
                "a lazy layer has no weights yet", where=name, hint="Call the model once on real data first"
            )


def _runs(twin: nn.Module, inputs: Inputs) -> bool:
    """Whether a forward on `inputs` ends without an error; what it draws comes from generators of its own."""
    from canonize.twins.writes import unharmed

    def forward() -> None:
        given = inputs.map(lambda tensor: tensor.clone())
        twin(*given.args, **given.kwargs)

    with PrivateRandom(), torch.no_grad(), no_warnings():
        try:
            unharmed(twin, forward)
        except Exception as error:  # models say "not this shape" with every kind of exception there is
            if cuts_in(error):
                raise
            return False
    return True

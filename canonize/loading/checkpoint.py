"""What a file held -> a module: a module itself, or a state dictionary put into its architecture."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from canonize.errors import LoadError
from canonize.loading.architecture import build

# Where training scripts put the model or its weights inside a checkpoint.
NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module", "state_dict_ema")
# DenseNets were once saved with the layers' numbers as modules of their own: `denselayer1.norm.1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(?=[12]\.)")


def module_from(content: Any, arch: str | None, path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Turn the content of a file into a module and notes about it.

    Raises
    ------
    LoadError
        If it holds neither a module nor a state dictionary, or the dictionary does not fit `arch`.
    """
    where = str(path)
    content, key = _unnest(content)
    if isinstance(content, nn.Module):
        notes = [f"taken from {key!r} in the file"] if key else []
        if arch is not None:
            notes.append(f"{path.name} holds a whole module: {arch} was not needed")
        if isinstance(content, nn.DataParallel):
            content = content.module
            notes.append("nn.DataParallel taken off")
        return content, tuple(notes)
    if not _is_state_dict(content):
        raise LoadError(
            f"holds {_kind(content)}, neither a module nor a state dictionary",
            where=where,
            hint="Save the model with torch.save(model, path), or model.state_dict()",
        )
    if arch is None:
        raise LoadError(
            f"holds weights alone ({len(content)} tensors)",
            where=where,
            hint="Say what they belong to: --arch torchvision:densenet121, timm:resnet50 or package.module:factory",
        )
    return fit(content, arch, path)


def fit(state: Mapping[str, Any], arch: str, path: Path) -> tuple[nn.Module, tuple[str, ...]]:
    """Build `arch` with as many classes and input channels as `state` has, and put `state` into it."""
    notes: list[str] = []
    model = build(arch)
    metadata = getattr(state, "_metadata", None)
    state, prefix = _match_names(dict(state), model)
    if not arch.startswith(("torchvision:", "timm:")):
        options: dict[str, int] = {}
    else:
        options = _sizes(state, model, arch)
    if options:
        try:
            model = build(arch, **options)
            notes.append(f"built with {', '.join(f'{k}={v}' for k, v in options.items())}, as in the file")
        except LoadError:
            pass  # an architecture without that option: the mismatch itself is reported below
    _refuse_misfit(state, model, arch, path)
    try:
        model.load_state_dict(_with_metadata(state, metadata, prefix), strict=False)
    except (RuntimeError, ValueError) as error:
        raise LoadError(f"{arch} does not take the weights ({error})", where=str(path)) from error
    return model, tuple(notes)


def _unnest(content: Any) -> tuple[Any, str | None]:
    """The model or its weights, and the key they stood under, if any."""
    if isinstance(content, Mapping) and not _is_state_dict(content):
        for key in NESTS:
            inner = content.get(key)
            if isinstance(inner, nn.Module) or _is_state_dict(inner):
                return inner, key
    return content, None


def _is_state_dict(content: Any) -> bool:
    if not isinstance(content, Mapping) or not content:
        return False
    # Modules may save more than tensors (`get_extra_state`).
    tensors = sum(isinstance(v, Tensor) for v in content.values())
    return all(isinstance(k, str) for k in content) and 2 * tensors > len(content)


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with the keys {', '.join(map(repr, list(content)[:4]))}"
    return f"a {type(content).__name__}"


def _match_names(state: dict[str, Any], model: nn.Module) -> tuple[dict[str, Any], str]:
    """Take off what wrappers put before every name (``module.``, ``_orig_mod.``, ``model.``) and undo old spellings."""
    own = model.state_dict().keys()
    prefix = ""
    while not own & state.keys():
        first = next(iter(state)).split(".")[0] + "."
        if not all(name.startswith(first) and name != first for name in state):
            break
        state = {name.removeprefix(first): value for name, value in state.items()}
        prefix += first
    renamed = {_OLD_DENSENET.sub(r"\1", name): value for name, value in state.items()}
    return (renamed if len(own & renamed.keys()) > len(own & state.keys()) else state), prefix


def _with_metadata(state: Mapping[str, Any], metadata: Any, prefix: str) -> Mapping[str, Any]:
    """`state` with the versions of its modules, by which some of them tell how to read it."""
    versioned: OrderedDict[str, Any] = OrderedDict(state)
    if isinstance(metadata, Mapping):
        named = {str(k): v for k, v in metadata.items() if f"{k}.".startswith(prefix)}
        versioned._metadata = {f"{k}."[len(prefix) :].rstrip("."): v for k, v in named.items()}  # type: ignore[attr-defined]
    return versioned


def _sizes(state: Mapping[str, Any], model: nn.Module, arch: str) -> dict[str, int]:
    """Options that make the model's classifier, and for timm its first convolution, as large as those in the file."""
    rows, channels = set(), set()
    for name, own in model.state_dict().items():
        given = state.get(name)
        if not isinstance(given, Tensor) or given.shape == own.shape or given.dim() != own.dim():
            continue
        if given.shape[1:] == own.shape[1:]:
            rows.add(given.shape[0])
        elif given.dim() == 4 and given.shape[:1] + given.shape[2:] == own.shape[:1] + own.shape[2:]:
            channels.add(3 * given.shape[1] // own.shape[1])  # some stems see every image channel several times
    options: dict[str, int] = {}
    if len(rows) == 1:
        options["num_classes"] = rows.pop()
    if len(channels) == 1 and arch.startswith("timm:"):
        options["in_chans"] = channels.pop()
    return options


def _refuse_misfit(state: Mapping[str, Any], model: nn.Module, arch: str, path: Path) -> None:
    own = model.state_dict()
    # Files from before torch 0.4.1 have no counters of batches, which evaluation does not read.
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in state if n not in own]
    shapes = [
        f"{n} is {_shape(state[n])} in the file, {_shape(own[n])} in the model"
        for n in own
        if n in state and isinstance(own[n], Tensor) and _shape(own[n]) != _shape(state[n])
    ]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing ({_few(missing)})")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected ({_few(unexpected)})")
    if shapes:
        parts.append(f"{len(shapes)} of another shape ({shapes[0]})")
    if parts:
        raise LoadError(
            f"the weights do not fit {arch}: {', '.join(parts)}",
            where=str(path),
            hint="Check the architecture's name and its variant",
        )


def _shape(value: Any) -> str:
    return ("x".join(map(str, value.shape)) or "scalar") if isinstance(value, Tensor) else type(value).__name__


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

"""Pictures from files and folders, cut and scaled to what a model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from canonize.errors import InputError, nearby
from canonize.explain.libraries import require

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Normalisation:
    """``(x - mean) / std`` for each channel of pictures with values from 0 to 1, and where the numbers come from."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str

    def apply(self, pictures: Tensor) -> Tensor:
        """Normalise ``(N, C, H, W)``."""
        return (pictures - self._column(self.mean, pictures)) / self._column(self.std, pictures)

    def bounds(self) -> tuple[Tensor, Tensor]:
        """The lowest and the highest value that a normalised picture can have, ``(1, C, 1, 1)`` each."""
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (-mean / std).view(1, -1, 1, 1), ((1 - mean) / std).view(1, -1, 1, 1)

    @staticmethod
    def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype).view(1, -1, 1, 1)

    def describe(self) -> str:
        """One line."""
        if set(self.mean) == {0.0} and set(self.std) == {1.0}:
            return f"pixels from 0 to 1 ({self.origin})"
        return f"pixels normalised by mean {_shown(self.mean)} and std {_shown(self.std)} ({self.origin})"


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class Pictures:
    """What is explained.

    Attributes
    ----------
    names : list of str
        Of the files, without folder.
    shown : Tensor, shape (N, C, H, W)
        From 0 to 1, as drawn.
    inputs : Tensor, shape (N, C, H, W)
        As the model is fed.
    """

    names: list[str]
    shown: Tensor
    inputs: Tensor


def normalisation_of(model: nn.Module, channels: int, given: str | None) -> Normalisation:
    """How a model's pictures are normalised: as given, else as the model says, else not at all.

    Parameters
    ----------
    model : nn.Module
    channels : int
    given : str or None
        ``none``, ``imagenet``, or ``MEAN/STD`` with one number for each channel, parted by commas
        (``0.5,0.5,0.5/0.2,0.2,0.2``). By default timm's configuration counts; torchvision's models of three channels
        get ImageNet's numbers; others none.

    Raises
    ------
    InputError
        If the numbers cannot be read, or do not fit the channels.
    """
    if given is not None:
        return _given(given, channels)
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and len(config.get("mean", ())) == len(config.get("std", ())) == channels:
        return Normalisation(tuple(config["mean"]), tuple(config["std"]), "the model's own configuration")
    if channels == 3 and type(model).__module__.startswith("torchvision.models"):
        return Normalisation(*IMAGENET, "those of ImageNet, as for torchvision's models; --normalise none for none")
    return Normalisation((0.0,) * channels, (1.0,) * channels, "not normalised; --normalise MEAN/STD for more")


def _given(text: str, channels: int) -> Normalisation:
    if text == "none":
        return Normalisation((0.0,) * channels, (1.0,) * channels, "as asked for")
    if text == "imagenet":
        mean, std = IMAGENET
    else:
        try:
            mean, std = (tuple(float(v) for v in part.split(",")) for part in text.split("/"))  # type: ignore[assignment]
        except ValueError as error:
            raise InputError(
                f"{text!r} is no normalisation", hint="Write none, imagenet, or 0.5,0.5,0.5/0.2,0.2,0.2"
            ) from error
    if len(mean) != channels or len(std) != channels or any(value <= 0 for value in std):
        raise InputError(
            f"the normalisation {text} does not fit {channels} channels", hint="Give one mean and one std for each"
        )
    return Normalisation(mean, std, "as asked for")


def find(paths: Sequence[Path]) -> list[Path]:
    """Picture files: those named, and all in the folders named, sorted.

    Raises
    ------
    InputError
        If one does not exist or is no picture, or a folder holds none.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in ENDINGS)
            if not inside:
                raise InputError("holds no pictures", where=str(path), hint=f"Endings: {' '.join(ENDINGS)}")
            found += inside
        elif not path.exists():
            raise InputError("there is no such file", where=str(path), hint=nearby(path, ENDINGS))
        elif path.suffix.lower() not in ENDINGS:
            raise InputError("is no picture by its name", where=str(path), hint=f"Endings: {' '.join(ENDINGS)}")
        else:
            found.append(path)
    return found


def read(files: Sequence[Path], shape: tuple[int, int, int], normalisation: Normalisation) -> Pictures:
    """Read pictures as a batch: scaled until they cover the size, and the middle cut out.

    Parameters
    ----------
    files : sequence of Path
    shape : (channels, height, width)
        What the model takes: 1 channel (grey) or 3 (red, green, blue).
    normalisation : Normalisation

    Raises
    ------
    InputError
        If a file cannot be read, or the model's channels are no colours.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise InputError(
            f"pictures have no {channels} channels", hint="Explain it in Python: canonize.explain.attribute"
        )
    shown = torch.stack([_one(file, "L" if channels == 1 else "RGB", height, width) for file in files])
    return Pictures([file.name for file in files], shown, normalisation.apply(shown))


def _one(file: Path, mode: str, height: int, width: int) -> Tensor:
    image_module, ops = require("PIL.Image"), require("PIL.ImageOps")
    image = ops.fit(opened(file, mode), (width, height), method=image_module.Resampling.BILINEAR)
    if image.mode == "F":  # grey in more than 8 bits
        import numpy

        grey = torch.from_numpy(numpy.array(image, dtype="float32"))
        return grey.clamp(0, 1)[None].expand(3 if mode == "RGB" else 1, -1, -1)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, -1).permute(2, 0, 1).float() / 255


def opened(file: Path, mode: str) -> Any:
    """A picture as a person sees it: turned as its camera was held, its transparent parts on white.

    Parameters
    ----------
    file : Path
    mode : {"L", "RGB"}

    Returns
    -------
    PIL.Image.Image
        In this mode; grey pictures of more than 8 bits as mode ``F``, from 0 (black) to 1 (white), since Pillow cuts
        their values off at 255.

    Raises
    ------
    InputError
        If it cannot be read, or does not say which value is white.
    """
    image_module, ops = require("PIL.Image"), require("PIL.ImageOps")
    try:
        with image_module.open(file) as source:
            form, bits = source.format, _bits(source)
            image: Any = ops.exif_transpose(source)
            if image.mode.startswith(("I", "F")):
                return _deep(image, form, bits, file)
            if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = image_module.new("RGBA", image.size, "white")
                image = image_module.alpha_composite(white, image)
            return image.convert(mode)
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read as a picture ({error})"
        raise InputError(reason, where=str(file), hint="Is it whole?") from error


def _bits(image: Any) -> int | None:
    """Bits of a value, where a TIFF says them (tag 258)."""
    told = getattr(image, "tag_v2", {}).get(258)
    first = told[0] if isinstance(told, tuple) and told else told
    return first if isinstance(first, int) else None


def _deep(image: Any, form: str | None, bits: int | None, file: Path) -> Any:
    """A grey picture of more than 8 bits, from 0 to 1."""
    import numpy

    values = numpy.array(image, dtype="float64")
    if image.mode == "F" or (bits is None and image.mode == "I" and form not in ("PNG", "PPM")) or (bits or 0) > 16:
        if values.size and not 0 <= values.min() <= values.max() <= 1:
            raise InputError(
                f"holds values from {values.min():g} to {values.max():g} and does not say which is white",
                where=str(file),
                hint="Save it with 8 or 16 bits for each value",
            )
        white = 1
    else:
        white = 2 ** (bits or 16) - 1
    return require("PIL.Image").fromarray((values / white).astype("float32"))

"""Settings of the metrics by name: those with which a paper's authors measured."""

from __future__ import annotations

from canonize.errors import InputError
from canonize.evaluate.metrics.catalogue import Settings

PRESETS: dict[str, Settings] = {
    "default": Settings(),
    # Pahde et al. 2023, as their evaluation has them, for images of 224 pixels: squares of 14 pixels, 50 of them; noise
    # in the units of the model's input; magnitudes for localisation; all heatmaps divided by their second moment.
    "pahde": Settings(
        patch=14,
        perturbation_steps=50,
        radius=0.2,
        noise_samples=10,
        select="absolute",
        normalise="second-moment",
        subsets=100,
    ),
}


def preset(name: str) -> Settings:
    """Settings by name.

    Raises
    ------
    InputError
        If there are none.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}", hint=f"Choose one of {', '.join(PRESETS)}")
    return PRESETS[name]

"""Converters alone on the same tests: ``python -m benchmarks.onnx.peers [--every 6]``; each that is installed is run.

What each makes of a model is called on the standard's inputs and compared with its outputs; canonize has no part in it.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

from benchmarks.onnx.cases import cases
from benchmarks.onnx.measure import as_tensor, difference, flat, not_for_us
from canonize.compat.torchvision import import_torchvision


def _by(module: str, function: str, **options: Any) -> Callable[[Any], Any]:
    def convert(model: Any) -> Any:
        # Most of them import torchvision, whose operators may be missing.
        return getattr(import_torchvision(module), function)(model, **options)

    return convert


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "onnx2fx": _by("onnx2fx", "convert"),
    "onnx2torch": _by("onnx2torch", "convert"),
    "onnx2torch2": _by("onnx2torch2", "convert"),
    "onnx2pytorch": _by("onnx2pytorch", "ConvertModel", experimental=True),
}


def main() -> int:
    """Print a row for each converter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=6)
    given = parser.parse_args()
    torch.set_num_threads(1)
    asked = [case for case in cases(given.every) if not not_for_us(case)]
    for name, convert in CONVERTERS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        counts: Counter[str] = Counter()
        for case in asked:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    with torch.no_grad():
                        found = convert(case.model).eval()(*[as_tensor(array) for array in case.inputs or ()])
                    counts["wrong" if difference(flat(found), case) else "right"] += 1
                except Exception:
                    counts["fails"] += 1
        print(f"{name} {version}: {counts['right']} right, {counts['wrong']} wrong, {counts['fails']} fail")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

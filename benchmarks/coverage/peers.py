"""What other tools do to the same models: ``python -m benchmarks.coverage.peers``."""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.coverage.measure import Row, prepared
from benchmarks.coverage.sample import SAMPLE
from benchmarks.coverage.table import table
from benchmarks.coverage.zoo import architectures
from canonize import canonize
from tests.checks import count_batch_norms, relative_error

RESULTS = Path(__file__).parents[2] / "docs" / "coverage-peers.json"
Convert = Callable[[nn.Module, tuple[Tensor, ...]], nn.Module]


def _canonize(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    return canonize(model, inputs, verify=False)


def _fuse(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    from torch.fx.experimental.optimization import fuse

    return fuse(model)


def _zennit(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    from zennit.canonizers import SequentialMergeBatchNorm

    model = copy.deepcopy(model)
    SequentialMergeBatchNorm().apply(model)
    return model


def _export_passes(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The constant-folding freeze of TorchScript, which folds Conv -> BatchNorm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, inputs, check_trace=False)
        return torch.jit.optimize_for_inference(torch.jit.freeze(traced))


PEERS: dict[str, Convert] = {
    "canonize": _canonize,
    "torch.fx fuse": _fuse,
    "zennit SequentialMergeBatchNorm": _zennit,
    "torch.jit freeze": _export_passes,
}


def main(
    models: Annotated[
        list[str] | None, typer.Argument(help="Only these of the sample; the others' figures stay.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where the figures go.")] = RESULTS,
) -> None:
    """Run canonize and its peers over the sample."""
    wanted_models = models or list(SAMPLE)
    old = json.loads(results.read_text()) if results.exists() else []
    rows, known = [row for row in old if row["model"] not in wanted_models], architectures()
    for key in wanted_models:
        (architecture,) = [it for it in known if it.key == key]
        model, feed = prepared(architecture, 0, Row(key, "", ""))
        inputs = feed(2)
        with torch.no_grad():
            wanted = pytree.tree_leaves(model(*inputs))
            before = count_batch_norms(model, inputs)
            for peer, convert in PEERS.items():
                row = {"model": key, "peer": peer, "before": before}
                try:
                    other = convert(model, inputs)
                    row |= {
                        "after": _count(other, inputs),
                        "error": relative_error(pytree.tree_leaves(other(*inputs)), wanted),
                    }
                except Exception as error:
                    row["failed"] = f"{type(error).__name__}: {error}"[:200]
                rows.append(row)
        sys.stderr.write(f"{key}\n")
    results.write_text(json.dumps(rows, indent=1) + "\n")


def _count(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    if isinstance(model, torch.jit.ScriptModule):
        return str(model.inlined_graph).count("aten::batch_norm")
    return count_batch_norms(model, inputs)


def as_markdown(results: Path = RESULTS) -> str:
    """The figures as a table; empty where they have not been made."""
    if not results.exists():
        return ""
    rows = json.loads(results.read_text())
    head = ("tool", "BatchNorms before", "after", "right", "wrong by more than 1e-3", "wrong by less", "failed")
    cells = []
    for peer in PEERS:
        own = [row for row in rows if row["peer"] == peer]
        done = [row for row in own if "error" in row]
        errors = [row["error"] for row in done]
        cells.append(
            (
                peer,
                sum(row["before"] for row in done),
                sum(row["after"] for row in done),
                sum(error <= 1e-10 for error in errors),
                sum(error > 1e-3 for error in errors),
                sum(1e-10 < error <= 1e-3 for error in errors),
                len(own) - len(done),
            )
        )
    models = len({row["model"] for row in rows})
    introduction = (
        f"The same {models} models, one a family (`benchmarks/coverage/sample.py`), in float64, converted by\n"
        "`python -m benchmarks.coverage.peers`. *Right* is an error of at most 1e-10, *wrong* a larger one of which\n"
        "the tool says no word. zennit leaves each BatchNorm where it is, with statistics that are meant to do nothing."
    )
    return "\n".join(["## Beside other tools", "", introduction, "", *table(head, cells), ""])


if __name__ == "__main__":
    typer.run(main)

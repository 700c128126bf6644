"""``canonize check``: prove a conversion again, for all inputs, without converting anything."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from torch import fx

from canonize.commands.common import DIFFERENT, GOOD, GivenInputs, Screen, Source, given_inputs, load_model
from canonize.errors import InputError, LoadError
from canonize.inputs import Inputs, parse_shape
from canonize.pipeline import normalized
from canonize.report import Proof, Report
from canonize.report.rows import proof_lines
from canonize.verify.certificate import Certificate, hash_of
from canonize.verify.certificate import check as check_certificate


def check(
    original: Source,
    canonical: Source,
    feed: GivenInputs,
    *,
    certificate: Path | None,
    report_file: Path | None,
    screen: Screen,
) -> int:
    """Print whether a canonical model is proven to be its original; exit 1 if a layer is not."""
    if report_file is not None and report_file.suffix.lower() != ".json":
        raise InputError(f"a proof cannot be written as {report_file.suffix or 'a file without ending'}", hint=".json")
    shapes = [parse_shape(s) for s in feed.shapes]
    model, built = load_model(original, shapes).model, load_model(canonical).model
    if not isinstance(built, fx.GraphModule):
        raise LoadError("holds no graph to be checked", where=canonical.name, hint="Give the .pt that canonize wrote")
    hints = _hints(built, canonical.name, certificate)
    given = feed.shapes or feed.file is not None
    inputs = given_inputs(model, shapes, feed.file) if given else _example(hints) or given_inputs(model, [], None)
    network = normalized(model.eval(), inputs, str(hints.settings.get("tracer", "symbolic_trace")))
    proof = check_certificate(network, built, hints)
    hashes = {"original": hash_of(model), "canonical": hash_of(built)}
    others = [name for name, found in hashes.items() if hints.hashes.get(name) != found]
    for name in others:
        screen.say(f"the weights of the {name} model are not those that the certificate was written for")
    for line in proof_lines(proof):
        screen.say(line)
    good = proof.proven and not others
    if report_file is not None:
        report_file.write_text(json.dumps(_data(proof, others, good), indent=2), encoding="utf-8")
    return GOOD if good else DIFFERENT


def _data(proof: Proof, others: list[str], good: bool) -> dict[str, object]:
    return {"passed": good, "other_weights": others, **dataclasses.asdict(proof)}


def _hints(built: fx.GraphModule, name: str, file: Path | None) -> Certificate:
    report = getattr(built, "report", None)
    text = report.certificate if isinstance(report, Report) else ""
    where = name
    if file is not None:
        where = str(file)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoadError(f"cannot be read ({error})", where=where) from error
    if not text:
        raise LoadError(
            "holds no certificate", where=where, hint="Convert it again with --certificate FILE, and name that file"
        )
    try:
        return Certificate.from_json(text)
    except ValueError as error:
        raise LoadError(f"is no certificate that can be read ({error})", where=where) from error


def _example(hints: Certificate) -> Inputs | None:
    """Inputs of the sizes that the model was converted with."""
    try:
        tensors = []
        for shape, dtype in hints.settings["sizes"]:
            kind = getattr(torch, dtype)
            tensors.append(torch.zeros([int(size) for size in shape], dtype=kind))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    return Inputs(tuple(tensors)) if tensors else None

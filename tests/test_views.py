"""The text view says everything the report holds."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from canonize.report import AffineFate, Check, Finding, Report, Verdict
from canonize.report.text import render, render_rich
from canonize.report.verdict import render_verdict

CHECKS = (
    Check("normal, batch 2", "output", "float64", 3e-16, 1e-10, True),
    Check("large, batch 3", "output", "float64", 5e-15, 1e-10, True),
    Check("normal, batch 2", "input gradient", "float64", 2e-14, 1e-8, True),
    Check("normal, batch 2", "output", "float32", 2e-7, 1e-5, True),
)


def report() -> Report:
    absorbed = [
        AffineFate(f"layer{i}.bn", "BatchNorm2d", "absorbed", "fold_into_producer", (f"layer{i}.conv",))
        for i in range(9)
    ]
    return Report(
        "ResNet",
        inputs="2x3x224x224 float32",
        affines=[
            *absorbed,
            AffineFate("norm5", "BatchNorm2d", "last resort", "explicit_linear", ("norm5",), "it feeds the output"),
            AffineFate("odd", "F.batch_norm", "left", None, (), "its statistics come from the batch"),
        ],
        findings=[
            Finding("C1", "odd", "a loose BatchNorm", "explainers have no rule for it", "statistics of the batch"),
            *(Finding("C3", f"layer{i}.add", "a bare sum", "relevance doubles") for i in range(5)),
        ],
        notes=["built with num_classes=5"],
        verdict=Verdict(True, CHECKS),
    )


def test_plain_text_holds_every_fact() -> None:
    text = render(report())
    lines = text.splitlines()
    assert lines[0].startswith("ResNet: 10 BatchNorm2d, 1 F.batch_norm: 9 absorbed")
    assert "2x3x224x224 float32" in lines[1]
    row = next(line for line in lines if "9 x BatchNorm2d" in line)
    assert "layer0.bn ... layer8.bn" in row and "fold_into_producer" in row
    assert "norm5" in text and "last resort" in text and "it feeds the output" in text
    assert "left: its statistics come from the batch" in text
    assert "equivalent: 4 of 4 checks passed" in text
    assert "worst float64 output error 5.0e-15 <= 1.0e-10 (large, batch 3)" in text
    assert "worst float64 input gradient error 2.0e-14" in text
    assert "worst float32 output error 2.0e-07" in text
    assert "not canonical: 6 places" in text
    assert "C3 layer0.add, layer1.add and 3 more: a bare sum" in text
    assert "built with num_classes=5" in text
    assert str(report()) == text


def test_verbose_names_each_layer() -> None:
    text = render(report(), verbose=True)
    assert all(f"layer{i}.bn" in text and f"in layer{i}.conv" in text and f"C3 layer{i}.add" in text for i in range(5))
    assert " x BatchNorm2d" not in text


@pytest.mark.parametrize("verbose", [False, True])
def test_a_terminal_shows_the_same_words(verbose: bool) -> None:
    stream = io.StringIO()
    render_rich(report(), Console(file=stream, force_terminal=True, width=300, no_color=True), verbose)
    shown, plain = stream.getvalue(), render(report(), verbose)
    for word in set(plain.split()):
        assert word in shown, word
    piped = io.StringIO()
    render_rich(report(), Console(file=piped, width=20), verbose)
    assert piped.getvalue() == plain + "\n"


def test_names_with_brackets_are_no_markup() -> None:
    odd = Report("Net[bold]", affines=[AffineFate("a[0]", "mul [x]", "absorbed", "p", ("b[red]",))], notes=["[/x]"])
    stream = io.StringIO()
    render_rich(odd, Console(file=stream, force_terminal=True, width=200, no_color=True))
    assert all(name in stream.getvalue() for name in ("Net[bold]", "a[0]", "mul [x]", "b[red]", "[/x]"))


def test_a_failed_verdict_says_where() -> None:
    bad = Check("large", "output", "float64", 0.5, 1e-10, False, "output[0][1]")
    verdict = Verdict(False, (*CHECKS, bad), "outputs differ by half", ("batch 1 could not be tried",))
    text = render_verdict(verdict)
    assert "NOT EQUIVALENT: 1 of 5 checks failed" in text and "outputs differ by half" in text
    assert "FAIL  float64 output error 5.0e-01 > 1.0e-10 (large): output[0][1]" in text
    assert "batch 1 could not be tried" in text and "large, batch 3" not in text
    assert "large, batch 3" in render_verdict(verdict, verbose=True)


def test_an_empty_report_is_a_sentence() -> None:
    assert "no BatchNorm" in render(Report("ReLU"))
    inspected = Report("Net", findings=report().findings)
    assert render(inspected).startswith("Net: not canonical in 6 places (1 x C1, 5 x C3)")
    assert "canonical" in render(Report("ReLU", verdict=Verdict(True, CHECKS)))

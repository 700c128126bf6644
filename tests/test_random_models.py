"""Random programs keep their function and lose their batch norms; a failure prints the program that rebuilds it."""

from __future__ import annotations

import hypothesis
import torch
from hypothesis import strategies as st

from tests import checks
from tests.random_models import Program, RandomModel, Step, build, inputs, programs
from tests.zoo.case import conv, norm

__all__ = ["Program", "RandomModel", "Step"]  # what a printed program is made of


@hypothesis.settings(max_examples=40, derandomize=True, report_multiple_bugs=False)
@hypothesis.given(programs())
def test_random_models_are_canonized(program: Program) -> None:
    hypothesis.note(f"model = build({program!r})")
    checks.assert_canonized(build(program), inputs)


@hypothesis.settings(max_examples=60, derandomize=True)
@hypothesis.given(programs(longest=14), st.integers(2, 4))
def test_a_printed_program_rebuilds_the_model(program: Program, batch: int) -> None:
    again = eval(repr(program))
    assert again == program
    arguments = checks.draw(inputs, batch)
    outputs = build(program)(*arguments)
    assert outputs.shape[0] == batch
    assert torch.equal(build(again)(*arguments), outputs)


def test_the_generator_finds_what_canonizing_is_about() -> None:
    """Each of these shapes of program is within the strategy's reach."""

    def reads_twice(program: Program) -> bool:
        read = [source for step in program.steps for source in step.sources]
        return any(read.count(source) > 1 for source in read if source)

    def operations(*wanted: str) -> object:
        return lambda program: all(any(step.operation == name for step in program.steps) for name in wanted)

    searching = hypothesis.settings(max_examples=2000, derandomize=True, phases=[hypothesis.Phase.generate])
    for condition in (
        reads_twice,
        operations("norm", "concat", "conv"),
        operations("norm", "sum", "transposed"),
        operations("norm", "maximum", "linear"),
        lambda program: any(step.module_of is not None and step.operation == "conv" for step in program.steps),
        lambda program: any(step.module_of is not None and step.operation == "norm" for step in program.steps),
        lambda program: any(step.mode == "circular" and step.padding for step in program.steps),
    ):
        hypothesis.find(programs(), condition, settings=searching)


def test_a_program_written_by_hand() -> None:
    program = Program(
        3, (Step("norm", (0,), eps=0.5), Step("relu", (1,)), Step("conv", (2,), outputs=6, padding=1, groups=2))
    )
    model = build(program)
    layer = model.layers["layer2"]
    assert isinstance(layer, type(conv(2, 2)))
    assert (layer.groups, layer.padding) == (2, (1, 1))
    assert isinstance(model.layers["layer0"], type(norm(2)))
    assert model.layers["layer0"].eps == 0.5

"""Calls without a module of their own: resizing and padding by computed sizes, matrix products."""

from __future__ import annotations

from canonize.algebra.affine import Affine
from canonize.flow.padding import is_constant_pad, pad_backward, pad_forward
from canonize.flow.plan import RefusedError, Step, backward_rule, forward_rule
from canonize.flow.pooling_layers import only_input, same_everywhere
from canonize.flow.sums import factors, product_backward, product_forward
from canonize.nn import Call
from canonize.vocabulary import row_of


def _is_resizing(module: object) -> bool:
    return isinstance(module, Call) and row_of(module).resizes


def _refusal(step: Step) -> RefusedError:
    return RefusedError(f"no affine passes {step.label()} ({getattr(step.module, 'target', '')})")


@forward_rule(Call)
def call_forward(step: Step, incoming: list[Affine | None]) -> Affine | None:
    """Resizing is an average with weights that sum to one."""
    if is_constant_pad(step.module):
        return pad_forward(step, incoming)
    if factors(step.module) and not _is_resizing(step.module):
        return product_forward(step, incoming)
    if not _is_resizing(step.module) or any(affine is not None for affine in incoming[1:]):
        raise _refusal(step)
    affine = only_input(step, incoming[:1])
    same_everywhere(step, affine)
    step.pass_through("average")
    return affine


@backward_rule(Call)
def call_backward(step: Step, affine: Affine) -> list[Affine | None]:
    """Resizing is an average with weights that sum to one."""
    if is_constant_pad(step.module):
        return pad_backward(step, affine)
    if factors(step.module) and not _is_resizing(step.module):
        return product_backward(step, affine)
    if not _is_resizing(step.module):
        raise _refusal(step)
    same_everywhere(step, affine)
    step.pass_through("average")
    return [affine, *([None] * (len(step.network.data_inputs(step.node)) - 1))]

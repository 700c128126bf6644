"""Errors to plant: one slip each, of the kinds that folding code really has; ``tests/mutate.py`` plants them.

Each is a piece of one file of the package, what it becomes, and the tests that must notice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted error.

    Attributes
    ----------
    about : str
        Which pattern or rule it breaks.
    slip : str
        What is wrong with it.
    file : str
        Below ``canonize/``.
    old, new : str
        Text that occurs exactly once in the file, and what replaces it.
    tests : tuple of str
        Files below ``tests/`` of which at least one test must fail.
    """

    about: str
    slip: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


_LINEAR_BN = "patterns/test_linear_bn.py"
_BN_LINEAR = "patterns/test_bn_linear.py"
_CONCAT_BN = "patterns/test_concat_bn.py"
_CONCAT_LINEAR = "patterns/test_concat_linear.py"
_ACTIVATION = "patterns/test_bn_activation_linear.py"
_UNTANGLE = "patterns/test_untangle.py"
_SPLIT = "patterns/test_split_concat.py"
_LAST = "patterns/test_last_resort.py"
_STACKED = "patterns/test_stacked_linear.py"
_PARALLEL = "patterns/test_parallel_linear.py"


def _many(about: str, file: str, tests: str, *slips: tuple[str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(about, slip, file, old, new, tuple(tests.split())) for slip, old, new in slips)


MUTANTS: tuple[Mutant, ...] = (
    # ------------------------------------------------------------------------------------------------- evaluation
    *_many(
        "verdicts",
        "evaluate/summary.py",
        "evaluate/test_verdicts.py",
        ("rounding is a verdict", 'clear = abs(difference) > row["floor"] and ', "clear = "),
        ("controls get verdicts", 'if row["control"]:', "if False:"),
        ("every comparison stands alone", "(len(p_values) - np.arange(len(p_values)))", "1"),
        ("a later p-value may be below an earlier one", "np.maximum.accumulate(weighed)", "weighed"),
        ("the floor is that of the first canonization alone", "both.max(axis=1)", 'both["noise_before"]'),
    ),
    *_many(
        "noise",
        "evaluate/noise.py",
        "evaluate/test_verdicts.py",
        ("weights do not move", "torch.finfo(tensor.dtype).eps * signs", "0 * signs"),
        ("a moved activation makes no difference", "if name in BY_ACTIVATION:", "if False:"),
    ),
    *_many(
        "layer groups",
        "explain/rules.py",
        "explain/test_groups.py",
        ("groups are thirds", "-(-layers // (2 * groups - 2))", "layers // groups"),
    ),
    *_many(
        "named groups",
        "explain/grouping.py",
        "explain/test_groups.py",
        ("places are counted from 0", "max(first, 1) - 1", "max(first, 1)"),
    ),
    *_many(
        "channels to pixels",
        "evaluate/metrics/pooling.py",
        "evaluate/test_metrics.py",
        (
            "negative relevance is squared too",
            'part = relevance.clamp(min=0) if pooling == "pos-l2-norm-sq"',
            "part = relevance if True",
        ),
        (
            "the second moment is the largest",
            "moment = scaled.square().mean((1, 2), keepdim=True).sqrt()",
            "moment = 1",
        ),
    ),
    *_many(
        "steps of pixel flipping",
        "evaluate/metrics/perturbation.py",
        "evaluate/test_metrics.py",
        ("steps do not grow", "round(first * growth**step)", "round(first)"),
        (
            "the area is over steps, not over pixels",
            "(places / places[-1]).to(curve)",
            "torch.linspace(0, 1, curve.shape[1])",
        ),
    ),
    *_many(
        "localisation by size",
        "evaluate/object_size.py",
        "evaluate/test_sizes.py",
        ("large objects count as small", 'part[part["area"] < BELOW[size]]', "part"),
    ),
    *_many(
        "misfits",
        "evaluate/subject.py",
        "evaluate/test_command.py",
        ("labels beyond the outputs go through", "if largest >= outputs.shape[1]:", "if False:"),
    ),
    *_many(
        "extremes",
        "search/extremes.py",
        "search/test_search.py",
        ("the best is the worst", '== "lower", kind', '!= "lower", kind'),
    ),
    *_many(
        "hand-over",
        "explain/hdf5.py",
        "explain/test_hdf5.py",
        ("dark pictures wrap", ".round().clamp(0, 255).to(torch.uint8)", ".to(torch.int64).to(torch.uint8)"),
    ),
    *_many(
        "data",
        "evaluate/data/voc.py",
        "evaluate/test_data.py",
        ("pictures of several classes have one", "torch.tensor(present)", "torch.ones(len(present))"),
    ),
    *_many(
        "data",
        "evaluate/data/__init__.py",
        "evaluate/test_data.py",
        ("objects at the border are cut away", 'crop=name != "voc"', "crop=True"),
    ),
    *_many(
        "data",
        "evaluate/data/clevr_xai.py",
        "evaluate/test_data.py",
        ("a complex question takes the unique mask", '"complex": ("union",)', '"complex": ("unique",)'),
        ("a mask that is missing is an error", 'if name != "object" and not', "if False and not"),
    ),
    # ------------------------------------------------------------------------------------------------- algebra
    *_many(
        "affine",
        "algebra/affine.py",
        "test_affine.py",
        ("eps is forgotten", "scale = torch.rsqrt(var + eps)", "scale = torch.rsqrt(var)"),
        ("the mean has the wrong sign", "shift = -mean * scale", "shift = mean * scale"),
        ("the mean is not scaled", "shift = -mean * scale", "shift = -mean"),
        ("the bias is forgotten", "shift = shift + bias.detach().to(EXACT)", "shift = shift"),
        (
            "composition forgets the second scale",
            "self.scale * first.shift + self.shift",
            "first.shift + self.shift",
        ),
        ("z has the wrong sign", "_compress(-self.shift / self.scale)", "_compress(self.shift / self.scale)"),
        ("no channel is dead", "torch.logical_or(scale == 0, overflows & drowns)", "torch.zeros_like(scale == 0)"),
        ("only exact zeros are dead", "torch.logical_or(scale == 0, overflows & drowns)", "scale == 0"),
        ("what overflows is dead", "torch.logical_or(scale == 0, overflows & drowns)", "(scale == 0) | overflows"),
        ("only neighbours are compared", "if bool((tensor == first).all()):", "if bool((tensor[:2] == first).all()):"),
    ),
    *_many(
        "pending weights",
        "algebra/weights.py",
        "test_linear.py",
        (
            "groups of a transposed convolution are forgotten",
            "per_group = self.weight.shape[0] // self.groups",
            "per_group = self.weight.shape[0]",
        ),
        ("the old bias is not scaled", "self.bias * scale + shift", "self.bias + shift"),
        ("the old bias is dropped", "else self.bias * scale + shift", "else shift"),
        (
            "the response forgets the old bias",
            "response if self.bias is None else self.bias + response",
            "response",
        ),
        (
            "input and output channels are mixed up",
            "of_inputs, of_outputs = of_outputs, of_inputs",
            "pass",
        ),
        (
            "the bias is taken up after the scale",
            "        if bool(shift.any()):\n            response = self.response_to(shift)",
            "        self.in_scale = scale if self.in_scale is None else self.in_scale * scale\n"
            "        scale = scale * 0 + 1\n"
            "        if bool(shift.any()):\n            response = self.response_to(shift)",
        ),
        ("a second scale replaces the first", "else self.out_scale * scale", "else scale"),
        (
            "a clone forgets what is pending",
            "copy.in_scale, copy.out_scale, copy.bias_touched = self.in_scale",
            "copy.in_scale, copy.out_scale, copy.bias_touched = None",
        ),
        (
            "a transposed convolution's channels are the other way round",
            "return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]",
            "return self.weight.shape[0] if self.transposed else self.weight.shape[0]",
        ),
    ),
    # -------------------------------------------------------------------------------------------- flow: linear
    *_many(
        "linear_bn",
        "flow/linear.py",
        _LINEAR_BN,
        (
            "a dense layer takes dimension 1",
            "scale, shift = channel_vectors(step, affine, -1, step.node, step.network.weights(step.node).out_channels)",
            "scale, shift = channel_vectors(step, affine, 1, step.node, step.network.weights(step.node).out_channels)",
        ),
        (
            "a convolution loses the shift",
            "scale, shift = channel_vectors(step, affine, 1, step.node, step.network.weights(step.node).out_channels)\n"
            "    step.absorbed(TakeOutput(scale, shift))",
            "scale, shift = channel_vectors(step, affine, 1, step.node, step.network.weights(step.node).out_channels)\n"
            "    step.absorbed(TakeOutput(scale, shift * 0))",
        ),
        (
            "a missing batch dimension goes unnoticed",
            'step.require(affine.ndim == rank, f"{step.label()} is called without a batch dimension")',
            "pass",
        ),
        (
            "an affine that differs along other dimensions passes",
            "    step.require(\n        not others,",
            "    step.require(\n        True,",
        ),
        (
            "an explicit layer takes dimension 1 whatever its own",
            "scale, shift = channel_vectors(step, affine, module.dim, step.node, module.out_channels)\n"
            "    step.absorbed(TakeOutput(scale, shift))",
            "scale, shift = channel_vectors(step, affine, module.dim, step.node, module.out_channels)\n"
            "    step.absorbed(TakeOutput(scale * 1.0, shift * 2.0))",
        ),
    ),
    *_many(
        "bn_linear",
        "flow/linear.py",
        _BN_LINEAR,
        (
            "a dense layer loses the shift",
            "scale, shift = channel_vectors(step, affine, -1, step.node, step.network.weights(step.node).in_channels)\n"
            "    step.absorbed(TakeInput(scale, shift))",
            "scale, shift = channel_vectors(step, affine, -1, step.node, step.network.weights(step.node).in_channels)\n"
            "    step.absorbed(TakeInput(scale, shift * 0))",
        ),
        (
            "the border stays zero",
            'if any(padding) and module.padding_mode == "zeros" and bool(shift.any()):',
            "if False:",
        ),
        (
            "every padding mode is taken for zeros",
            'if any(padding) and module.padding_mode == "zeros" and bool(shift.any()):',
            "if any(padding) and bool(shift.any()):",
        ),
        (
            "the convolution goes on padding",
            '("padding", (0,) * len(module.kernel_size)),',
            '("padding", module.padding),',
        ),
        (
            "a stride of a transposed convolution is overlooked",
            "        all(s == 1 for s in module.stride),",
            "        True,",
        ),
        (
            "the rim of a transposed convolution is one too thin",
            "max(0, d * (k - 1) - p, d * (k - 1) - p + o)",
            "max(0, d * (k - 1) - p - 1, d * (k - 1) - p + o - 1)",
        ),
        (
            "dilation is forgotten in the rim",
            "max(0, d * (k - 1) - p, d * (k - 1) - p + o)",
            "max(0, (k - 1) - p, (k - 1) - p + o)",
        ),
        (
            "output padding is forgotten in the rim",
            "max(0, d * (k - 1) - p, d * (k - 1) - p + o)",
            "max(0, d * (k - 1) - p)",
        ),
        (
            "the rim is not cropped again",
            "cropped = tuple(p + rim for p, rim in zip(module.padding, rims, strict=True))",
            "cropped = tuple(module.padding)",
        ),
        (
            "an explicit layer behind takes twice the shift",
            "scale, shift = channel_vectors(step, affine, module.dim, step.node, module.out_channels)\n"
            "    step.absorbed(TakeInput(scale, shift))",
            "scale, shift = channel_vectors(step, affine, module.dim, step.node, module.out_channels)\n"
            "    step.absorbed(TakeInput(scale, 2 * shift))",
        ),
    ),
    # ------------------------------------------------------------------------------------------ flow: movement
    *_many(
        "movement",
        "flow/movement.py",
        f"{_LINEAR_BN} {_BN_LINEAR} test_zoo.py",
        (
            "forward, the shift stays where it was",
            "_move(step, shift.cpu()).to(shift.device)).compress()",
            "shift.mean().reshape((1,) * len(step.shape()))).compress()",
        ),
        (
            "forward, every rearrangement is taken for a cast",
            "    if _keeps_places(step):\n        return affine\n    if not affine.varying",
            "    if len(step.shape()) == affine.ndim:\n        return affine\n    if not affine.varying",
        ),
        (
            "backward, every rearrangement is taken for a cast",
            "    if _keeps_places(step, back=True):\n        return [affine, *rest]",
            "    if len(step.shape()) == len(step.shape(_data(step))):\n        return [affine, *rest]",
        ),
        (
            "backward, elements that are shown twice may disagree",
            '        torch.equal(found[places], values), f"',
            '        True, f"',
        ),
        (
            "backward, elements that others read are free to choose",
            "    shared = len(step.network.readers(_data(step))) > 1\n",
            "    shared = False\n",
        ),
        (
            "backward, what is not shown is scaled by zero",
            "for part, neutral in zip(sources, (1.0, 0.0), strict=True)",
            "for part, neutral in zip(sources, (0.0, 1.0), strict=True)",
        ),
    ),
    # ------------------------------------------------------------------------------------------- flow: padding
    *_many(
        "padding",
        "flow/padding.py",
        f"{_LINEAR_BN} {_BN_LINEAR}",
        ("forward, the constant stays", "_replace(step, padding, value, _before(step, affine, value))", "pass"),
        (
            "forward, the shift is added instead of taken away",
            "Affine(affine.scale, affine.shift - value)",
            "Affine(affine.scale, affine.shift + value)",
        ),
        (
            "forward, padded channels get an affine",
            "F.pad(shift, fixed, value=0.0)",
            "F.pad(shift, fixed, value=1.0)",
        ),
        (
            "backward, the constant stays",
            "_replace(step, padding, value, affine.scale * value + affine.shift)",
            "pass",
        ),
        (
            "backward, the constant is not scaled",
            "affine.scale * value + affine.shift)",
            "value + affine.shift)",
        ),
    ),
    # ------------------------------------------------------------------------------------------- flow: pooling
    *_many(
        "pooling",
        "flow/pooling.py",
        f"{_LINEAR_BN} {_BN_LINEAR}",
        (
            "forward, counted padding stays zero",
            "_explicit_padding(step, affine, lambda: step.living_zero(affine))",
            "pass",
        ),
        (
            "backward, counted padding stays zero",
            "_explicit_padding(step, affine, lambda: affine.shift)",
            "pass",
        ),
        (
            "forward, the border is the shift",
            "_explicit_padding(step, affine, lambda: step.living_zero(affine))",
            "_explicit_padding(step, affine, lambda: affine.shift)",
        ),
        (
            "padding that is not counted becomes explicit",
            "if not any(padding) or not module.count_include_pad:",
            "if not any(padding):",
        ),
        ("sizes that are rounded up are overlooked", "        not module.ceil_mode,\n", "        True,\n"),
        (
            "any divisor will do",
            "            module.divisor_override == kernel and not any(padding) and not module.ceil_mode,",
            "            True,",
        ),
        (
            "the padding is on one side only",
            "around = tuple(side for p in reversed(padding) for side in (p, p))",
            "around = tuple(side for p in reversed(padding) for side in (2 * p, 0))",
        ),
        (
            "negative scales pass a maximum",
            'step.require(bool((affine.scale >= 0).all()), f"a negative scale',
            'step.require(True, f"a negative scale',
        ),
        (
            "indices of maxima are overlooked",
            "step.require(not module.return_indices, ",
            "step.require(True, ",
        ),
        (
            "affines that differ from position to position pass",
            "    spatial = affine.varying() - {0, 1}\n",
            "    spatial = affine.varying() - {0, 1, 2, 3}\n",
        ),
        (
            "forward, a sum does not multiply the shift",
            "shift = shift.expand(full).sum(module.dim, keepdim=True)",
            "shift = shift.expand(full).mean(module.dim, keepdim=True)",
        ),
        (
            "forward, a mean adds the shifts up",
            "shift = shift.mean(module.dim, keepdim=True)",
            "shift = shift.sum(module.dim, keepdim=True)",
        ),
        (
            "a scale that differs along a sum passes",
            "        all(across.shape[d] == 1 for d in module.dim),",
            "        True,",
        ),
        ("backward, a sum does not share the shift out", "shift = shift / count", "shift = shift * 1"),
        (
            "a free number of positions goes unnoticed",
            'step.require(not free, f"{step.label()} adds up a number of positions',
            'step.require(True, f"{step.label()} adds up a number of positions',
        ),
        (
            "a dimension that the sum drops is taken from the wrong end",
            "for dim in sorted(module.dim, reverse=True):\n            scale, shift = scale.squeeze",
            "for dim in sorted(module.dim):\n            scale, shift = scale.squeeze",
        ),
    ),
    *_many(
        "calls",
        "flow/calls.py",
        f"{_LINEAR_BN} {_BN_LINEAR} test_zoo.py",
        ("any call passes forward", "    if not _is_resizing(step.module) or any(", "    if any("),
        ("any call passes backward", "    if not _is_resizing(step.module):\n        raise _refusal(step)\n", ""),
    ),
    *_many(
        "attention",
        "flow/edits.py",
        "test_zoo.py",
        ("the shift is forgotten", "                bias[rows] += weight[rows] @ shift\n", ""),
        ("every input is taken for the query", "rows = slice(i * width, (i + 1) * width)", "rows = slice(0, width)"),
    ),
    *_many(
        "edits",
        "flow/edits.py",
        f"{_LINEAR_BN} {_BN_LINEAR} {_ACTIVATION}",
        (
            "two affines in a row are composed the wrong way round",
            "self.affine.after(own.affine) if self.behind else own.affine.after(self.affine)",
            "own.affine.after(self.affine) if self.behind else self.affine.after(own.affine)",
        ),
        (
            "an affine disappears into the next",
            "self.affine.after(own.affine) if self.behind else own.affine.after(self.affine)",
            "own.affine",
        ),
        ("a layer goes on padding", "            network.configure(node, **dict(self.settings))\n", ""),
        ("edits of one kind are all alike", "return all(_equal(a, b)", "return True or all(_equal(a, b)"),
    ),
    *_many(
        "plans walked once",
        "graph/network.py",
        f"{_ACTIVATION} {_CONCAT_BN}",
        ("an answer outlives a change", "self._answers.pop(question, None)", "pass"),
    ),
    *_many(
        "matrix products",
        "flow/sums.py",
        _BN_LINEAR,
        (
            "forward, the numbers of the two factors are not multiplied",
            "scale = affine.scale.reshape(()) if scale is None else scale * affine.scale.reshape(())",
            "scale = affine.scale.reshape(())",
        ),
        (
            "a shift passes",
            'step.require(affine.is_linear, f"a shift does not pass {what}")',
            'step.require(True, f"a shift does not pass {what}")',
        ),
        ("one number per channel passes", "step.require(not affine.varying(), ", "step.require(True, "),
    ),
    # ---------------------------------------------------------------------------------------------- flow: sums
    *_many(
        "sums",
        "flow/sums.py",
        f"{_LINEAR_BN} {_BN_LINEAR} {_ACTIVATION}",
        (
            "forward, one side alone may carry a scale",
            "            all(bool((a.scale == 1).all()) for a in affines),",
            "            True,",
        ),
        (
            "forward, the sides may carry different scales",
            "            bool(torch.eq(*torch.broadcast_tensors(scale, other.scale)).all()),",
            "            True,",
        ),
        (
            "forward, the weight of a side is forgotten",
            "part = _widened(affine, ndim).shift * weight",
            "part = _widened(affine, ndim).shift",
        ),
        (
            "forward, only one side's shift counts",
            "shift = part if shift is None else shift + part",
            "shift = part",
        ),
        (
            "backward, both sides take the shift",
            "shift = affine.shift / module.weights[i] if i == takes else torch.zeros_like(affine.shift)",
            "shift = affine.shift / module.weights[i]",
        ),
        (
            "backward, the weight of a side is forgotten",
            "shift = affine.shift / module.weights[i] if i == takes else",
            "shift = affine.shift if i == takes else",
        ),
        (
            "backward, a value may be added to itself",
            "step.require(len(set(inputs)) == len(inputs), ",
            "step.require(True, ",
        ),
        (
            "backward, a broadcast side takes an affine that it cannot hold",
            'step.require(size > 1, f"{step.label(node)} is broadcast',
            'step.require(True, f"{step.label(node)} is broadcast',
        ),
        (
            "backward, a broadcast side takes the shift",
            "full = [i for i, shape in enumerate(shapes) if shape == step.shape() and module.weights[i]]",
            "full = [i for i, shape in enumerate(shapes) if module.weights[i]]",
        ),
        (
            "forward, a shift passes a product",
            '        step.require(affine.is_linear, f"a shift does not pass the product {step.label()}")\n'
            "        part = _widened(affine, ndim).scale",
            "        part = _widened(affine, ndim).scale",
        ),
        (
            "backward, a shift passes a product",
            '    step.require(affine.is_linear, f"a shift does not pass the product {step.label()}")\n    signal, gate',
            "    signal, gate",
        ),
        (
            "backward, both factors take the scale",
            "return [_narrowed(step, affine, step.shape(signal), signal), None]",
            "return [_narrowed(step, affine, step.shape(signal), signal), affine]",
        ),
    ),
    *_many(
        "concatenations",
        "flow/sums.py",
        f"{_CONCAT_BN} {_CONCAT_LINEAR}",
        ("slices are one off", "tensor.narrow(dim, start, size)", "tensor.roll(1, dim).narrow(dim, start, size)"),
        ("every branch takes the first slice", "        start += size\n", ""),
        (
            "forward, a branch without an affine takes its neighbour's",
            "affines = [a if a is not None else Affine.identity(ndim, device) for a in incoming]",
            "affines = [a if a is not None else next(b for b in incoming if b is not None) for a in incoming]",
        ),
        (
            "forward, the branches are in the other order",
            "return Affine(torch.cat(scales, dim), torch.cat(shifts, dim))",
            "return Affine(torch.cat(scales[::-1], dim), torch.cat(shifts, dim))",
        ),
        (
            "forward, a negative dimension is taken literally",
            "    ndim = len(step.shape())\n    dim = module.dim % ndim\n",
            "    ndim = len(step.shape())\n    dim = abs(module.dim) % ndim\n",
        ),
        (
            "backward, a negative dimension is taken literally",
            "dim = module.dim % affine.ndim",
            "dim = abs(module.dim) % affine.ndim",
        ),
    ),
    # ---------------------------------------------------------------------------------------- flow: activation
    *_many(
        "bn_activation_linear",
        "flow/activation.py",
        _ACTIVATION,
        (
            "z has the wrong sign",
            "lower, upper = _swapped(safe < 0, (low - shift) / safe, (high - shift) / safe)",
            "lower, upper = _swapped(safe < 0, (low + shift) / safe, (high + shift) / safe)",
        ),
        ("negative scales are overlooked", "_swapped(safe < 0, (low", "_swapped(safe != safe, (low"),
        (
            "the upper bound is not moved",
            "return torch.where(where, second, first), torch.where(where, first, second)",
            "return torch.where(where, second, first), second",
        ),
        (
            "a dead channel is the constant t",
            "    constant = shift.clamp(low, high)\n",
            "    constant = shift\n",
        ),
        (
            "a dead channel keeps its scale",
            "else torch.where(dead, torch.ones_like(scale), scale)",
            "else torch.where(dead, torch.zeros_like(scale), scale)",
        ),
        (
            "a dead channel keeps its shift",
            "shift if dead is None else torch.where(dead, torch.zeros_like(shift), shift)",
            "shift",
        ),
        (
            "a threshold that overflows goes unnoticed",
            "        bool(((shift.abs() <= scale.abs() * largest) | dead).all()),",
            "        True,",
        ),
        (
            "the kink stays at zero",
            "if low == 0 and not has_upper and not bool(lower.any()):",
            "if low == 0 and not has_upper:",
        ),
        (
            "a threshold that is there already loses its upper bound",
            "first, second = (low - shift) / safe, (high - shift) / safe",
            "first, second = (low - shift) / safe, infinite",
        ),
        (
            "a threshold that is there already is not sorted again",
            "lower, upper = torch.minimum(first, second), torch.maximum(first, second)",
            "lower, upper = first, second",
        ),
        (
            "a threshold's dead channel ignores its bounds",
            "constant = torch.minimum(torch.maximum(shift, low), high)",
            "constant = shift",
        ),
        ("the leaky kink has the wrong sign", "kink = -shift / safe", "kink = shift / safe"),
        (
            "a negative scale does not exchange the slopes",
            "left, right = _swapped(safe < 0, slope, torch.ones_like(scale))",
            "left, right = slope, torch.ones_like(scale)",
        ),
        (
            "a dead leaky channel forgets its slope",
            "torch.where(shift > 0, shift, slope * shift)",
            "torch.where(shift > 0, shift, 0 * shift)",
        ),
        (
            "a leaky kink stays although a scale is negative",
            "if dead is None and not bool(kink.any()) and bool((scale > 0).all()):",
            "if dead is None and not bool(kink.any()):",
        ),
        (
            "slopes per channel lie along dimension 0",
            "    shape[1] = slope.numel()\n",
            "    shape[-1] = slope.numel()\n",
        ),
        (
            "a leaky threshold moves twice",
            "    if isinstance(module, ThreshLeakyReLU):\n",
            "    if False:\n",
        ),
    ),
    # ---------------------------------------------------------------------------------------------------- plan
    *_many(
        "plans",
        "flow/plan.py",
        f"{_LINEAR_BN} {_BN_LINEAR} {_CONCAT_BN} {_CONCAT_LINEAR}",
        (
            "other readers are overlooked",
            "            if others and not duplicate:\n",
            "            if False:\n",
        ),
        (
            "the model's output is no reader",
            '    if node.op == "output":\n        raise RefusedError("the model returns it as it is")',
            '    if node.op == "output":\n        return None',
        ),
        (
            "two different affines on one value go unnoticed",
            "        if not _agree(wanted[node]):\n",
            "        if False:\n",
        ),
        (
            "only scales must agree",
            "torch.equal(first.scale, other.scale) and torch.equal(first.shift, other.shift)",
            "torch.equal(first.scale, other.scale)",
        ),
        (
            "forward, a dimension of no fixed size goes unnoticed",
            "loose = _newly_varying(step, incoming, outgoing) and ",
            "loose = set() and ",
        ),
        (
            "backward, a dimension of no fixed size goes unnoticed",
            "        loose = step.network.shapes.free_among(argument, affine.compress().varying())\n",
            "        loose: set[int] = set()\n",
        ),
        (
            "every slice is blind",
            "    return seen is None or not seen.is_identity\n",
            "    return False\n",
        ),
        (
            "dead channels are made constant beside the affine, not by it",
            "torch.where(dead, shift, -infinite)",
            "torch.where(dead, shift * 0, -infinite)",
        ),
        (
            "dead channels keep their shift when made constant",
            "scale), torch.where(dead, torch.zeros_like(shift), shift))",
            "scale), shift)",
        ),
        (
            "the clamp of dead channels is forgotten",
            "        plan.edits.append((anchor, clamp))\n",
            "",
        ),
        (
            "the kinds that a pattern may pass are ignored",
            "        if kind not in allowed and kind != _CONSTANT:\n",
            "        if False:\n",
        ),
    ),
    # ------------------------------------------------------------------------------------------------ patterns
    *_many(
        "linear_bn",
        "patterns/linear_bn.py",
        _LINEAR_BN,
        ("it passes concatenations, too", "LINEAR_WAY)", 'LINEAR_WAY | {"concat"})'),
    ),
    *_many(
        "bn_linear",
        "patterns/bn_linear.py",
        _BN_LINEAR,
        ("it passes activations, too", "LINEAR_WAY)", 'LINEAR_WAY | {"activation"})'),
        ("it passes nothing", "LINEAR_WAY)", "frozenset())"),
    ),
    *_many(
        "concat_bn",
        "patterns/concat_bn.py",
        _CONCAT_BN,
        ("what stays is forgotten", 'LINEAR_WAY | {"concat"})', 'LINEAR_WAY | {"concat"}, stay=True)'),
        ("it copies producers", 'LINEAR_WAY | {"concat"})', 'LINEAR_WAY | {"concat"}, duplicate=True)'),
    ),
    *_many(
        "concat_linear",
        "patterns/concat_linear.py",
        _CONCAT_LINEAR,
        ("it passes activations, too", 'LINEAR_WAY | {"concat"})', 'LINEAR_WAY | {"concat", "activation"})'),
        (
            "it takes what has no concatenation",
            'return must_pass(plan, "concat", "no concatenation lies behind it")',
            "return plan",
        ),
    ),
    *_many(
        "bn_activation_linear",
        "patterns/bn_activation_linear.py",
        _ACTIVATION,
        ("it passes no concatenations", '{"concat", "activation"}', '{"activation"}'),
    ),
    *_many(
        "untangle",
        "patterns/untangle.py",
        _UNTANGLE,
        ("it copies nothing", "duplicate=True, stay=True", "stay=True"),
        (
            "it copies what holds nothing",
            "        if isinstance(plan, Plan) and not plan.into and not plan.merged:\n",
            "        if False:\n",
        ),
    ),
    *_many(
        "untangle",
        "flow/plan.py",
        _UNTANGLE,
        (
            "other readers read the copy",
            "            for reader in readers - set(plan.clones):\n",
            "            for reader in list(node.users):\n",
        ),
        (
            "a copy reads the original of its inputs",
            "copies[argument] if argument in copies and node in readers_of[argument] else argument",
            "argument",
        ),
        ("the original takes the affine", "edit.apply(network, copies.get(node, node))", "edit.apply(network, node)"),
    ),
    *_many(
        "untangle",
        "graph/network.py",
        _UNTANGLE,
        (
            "a copy and its original are one module",
            '        module = shell(original)\n        name = f"{node.target}_{suffix}"',
            "        module = original\n        name = str(node.target)",
        ),
    ),
    *_many(
        "split_concat",
        "patterns/split_concat.py",
        _SPLIT,
        ("nothing may stay", '{"concat"}, stay=True)', '{"concat"})'),
        (
            "it splits where nothing can be folded",
            "        if isinstance(plan, Plan) and not plan.into and not plan.merged:\n",
            "        if False:\n",
        ),
    ),
    *_many(
        "split_concat",
        "flow/plan.py",
        _SPLIT,
        (
            "what stays is forgotten",
            "            plan.staying[node] = affine\n            plan.path.append((node, frozenset(wanted[node])))\n",
            "",
        ),
        (
            "what stays is looked at again",
            "            module.last_resort_only = True\n",
            "            module.last_resort_only = False\n",
        ),
    ),
    *_many(
        "last_resort",
        "flow/linear.py",
        _LAST,
        (
            "the shift is forgotten",
            "    layer.bias = exact_parameter(shift, sample)\n",
            "    layer.bias = exact_parameter(shift * 0, sample)\n",
        ),
        (
            "the channels are those of dimension 1",
            "layer = ChannelLinear(channels, dim)",
            "layer = ChannelLinear(channels, 1)",
        ),
        ("every layer is one of images", "if dim == 1 and dims in (1, 2, 3):", "if dims in (1, 2, 3):"),
    ),
    *_many(
        "last_resort",
        "patterns/last_resort.py",
        _LAST,
        ("affines that differ along two dimensions are taken", "len(varying) > 1", "False"),
        ("free dimensions get weights", "if d < len(shape) and d not in free), None)", "if d < len(shape)), None)"),
        ("what stays loses its shift", "None if affine.is_linear else keep_exact(affine.shift, dtype)", "None"),
        (
            "what stays loses its scale",
            "None if bool((affine.scale == 1).all()) else keep_exact(affine.scale, dtype)",
            "None",
        ),
    ),
    *_many(
        "stacked_linear",
        "patterns/stacked_linear.py",
        _STACKED,
        (
            "the first bias is dropped",
            "behind_bias = through if behind_bias is None else behind_bias + through",
            "pass",
        ),
        ("the second bias is dropped", "through if behind_bias is None else behind_bias + through", "through"),
        ("zero padding between is overlooked", "if has_zero_padding(second) and biased:", "if False:"),
        ("groups are overlooked", "if a.groups != 1 or b.groups != 1:", "if False:"),
        ("larger layers are made", "if merged > separate else None", "if False else None"),
        ("other readers are overlooked", "        if others:\n", "        if False:\n"),
        (
            "a stride of a pointwise layer is overlooked",
            "return all(size == 1 for size in conv.kernel_size) and all(step == 1 for step in conv.stride)",
            "return all(size == 1 for size in conv.kernel_size)",
        ),
        (
            "the composition is transposed",
            'torch.einsum("oi...,ij->oj...", second, first.flatten(1))',
            'torch.einsum("oi...,ij->oj...", second.flip(1), first.flatten(1))',
        ),
    ),
    *_many(
        "parallel_linear",
        "patterns/parallel_linear.py",
        _PARALLEL,
        ("weights of the sum are forgotten", "Added(large, w1, kernel, w2)", "Added(large, 1.0, kernel, 1.0)"),
        ("factors are exchanged", "Added(large, w1, kernel, w2)", "Added(large, w2, kernel, w1)"),
        ("a piece of an affine's kernel starts over", "self.scale[part]", "self.scale[: len(own)]"),
        ("an affine's groups are counted within a piece", "channels % self.shape[1], *", "own % self.shape[1], *"),
        ("biases are not weighted", "[w * b for w, b in", "[b for w, b in"),
        ("the smaller kernel lies in the corner", "around += [start, end]", "around += [0, start + end]"),
        ("strides are overlooked", "    if other.stride != layer.stride:\n", "    if False:\n"),
        (
            "groups are overlooked",
            "    if other.groups != layer.groups or other.weight.shape[:2] != layer.weight.shape[:2]:\n",
            "    if False:\n",
        ),
        ("dilations are overlooked", "    if not pointwise and layer.dilation != other.dilation:\n", "    if False:\n"),
        (
            "padding modes are overlooked",
            "    if layer.padding_mode != other.padding_mode and not (pointwise and not any(other.padding)):\n",
            "    if False:\n",
        ),
        ("groups of an affine's kernel are forgotten", "channels % self.shape[1], *", "channels * 0, *"),
        ("other inputs are overlooked", "and left.args[0] is right.args[0]", "and True"),
        ("other readers are overlooked", "            if others:\n", "            if False:\n"),
        (
            "the identity is forgotten",
            "found if isinstance(found, str) else (found[0], None)",
            "found if isinstance(found, str) else (0 * found[0], None)",
        ),
        ("what the layer reads goes with the sum", "if plan.anchor is not plan.second.args[0]:", "if True:"),
    ),
    # -------------------------------------------------------------------------------------------------- forms
    *_many(
        "forms",
        "forms/plain_pooling.py",
        "forms/test_forms.py",
        ("the size is not checked", "            self._check_size(network, node, source, sizes)\n", ""),
        ("windows that overlap are taken", "any(not wanted or size % wanted for", "any(not wanted for"),
    ),
    *_many(
        "forms",
        "forms/dense_as_convolution.py",
        "forms/test_forms.py",
        (
            "rows and columns are swapped",
            "full = (dense.out_features, *shape[1:])\n",
            "full = (dense.out_features, *shape[1:][::-1])\n",
        ),
        ("pending weights are forgotten", "if weights.touched:", "if False:"),
        ("a threshold stays flat", "network.replace(reader, _reshaped(layer, shape))", "pass"),
    ),
    # --------------------------------------------------------------------------- functions kept whole, coordinates
    *_many(
        "functions kept whole",
        "capture/whole.py",
        "test_whole_functions.py",
        ("writes go unnoticed", "return [tensor._version for tensor in tensors] != before", "return False"),
        ("scripted functions are trusted", "if isinstance(node.target, torch.jit.ScriptFunction):", "if False:"),
        (
            "operators of one's own are trusted",
            "        return not str(node.target).startswith",
            "        return False and str(node.target).startswith",
        ),
        ("nothing may stay whole", "        if writes is not False:\n", "        if True:\n"),
        ("they are not traced into", "        del wrapped[key]\n", "        pass\n"),
    ),
    *_many(
        "functions kept whole",
        "normalize/functionalize.py",
        "test_whole_functions.py",
        (
            "writes into lists go unnoticed",
            '        raise CaptureError(f"{operation.name}_ writes into several',
            '        str(f"{operation.name}_ writes into several',
        ),
    ),
    *_many(
        "casts",
        "flow/movement.py",
        "patterns/test_casts.py",
        ("every cast lets affines pass", "        if not _holds(after.dtype, before.dtype) or", "        if"),
        ("no cast lets affines pass", "        if not _holds(after.dtype, before.dtype) or", "        if True or"),
        ("into a narrower precision", "(back and not _holds(before.dtype, after.dtype))", "False"),
        ("narrow for wide", "not _holds(after.dtype, before.dtype)", "not _holds(before.dtype, after.dtype)"),
    ),
    *_many(
        "casts",
        "normalize/naming.py",
        "patterns/test_casts.py",
        ("other numbers are the same", "return None if reads_otherwise else name", "return name"),
    ),
    *_many(
        "memory",
        "normalize/translate.py",
        "test_normalize.py",
        ("strides are followed", "operation is not None and operation.row.reads_memory", "False"),
    ),
    *_many(
        "idle reshapes",
        "rewrite/idle.py",
        "test_tidy.py",
        ("whatever it came from", "if source is not like or not", "if not"),
        ("nothing is idle", "        network.rewire_readers(node, like)\n", "        continue\n"),
        ("any rearrangement keeps the order", "return row.orderly and", "return row.moves and"),
    ),
    # -------------------------------------------------------------------------- writes into what the model holds
    *_many(
        "a model's own tensors",
        "twins/writes.py",
        "test_writes.py",
        ("writes are not stopped", "                if self._is_held(tensor):", "                if False:"),
        ("views have a memory of their own", "return int(tensor.untyped_storage()._cdata)", "return id(tensor)"),
        ("arguments by name are overlooked", "if argument.name in kwargs]", "if False]"),
        ("a second forward writes into the user's weights", "    unshare(twin)\n", "    pass\n"),
        (
            "what is made inside is not noted",
            "                    self._made[_memory(made)] = made",
            "                    pass",
        ),
    ),
    *_many(
        "a model's own tensors",
        "twins/copying.py",
        "test_writes.py",
        ("buffers are shared", "            return tensor.detach().clone()\n", "            return tensor\n"),
        (
            "parameters are not unshared",
            "                module._parameters[name] = own[id(held)]",
            "                pass",
        ),
    ),
    *_many(
        "a model's own tensors",
        "capture/attributes.py",
        "test_writes.py",
        (
            "layers may be exchanged",
            "                raise writes_its_state(where, path)",
            "                pass",
        ),
        ("nobody is told of counters", "                notes.append(", "                str("),
    ),
    *_many(
        "a model's own tensors",
        "capture/export_trace.py",
        "test_writes.py",
        ("state may come back", "        if name in names:\n", "        if False:\n"),
        ("nobody is told of state", "    return tuple(f", "    return () and tuple(f"),
    ),
    *_many(
        "a model's own tensors",
        "normalize/functionalize.py",
        "test_writes.py",
        (
            "views of parameters may be written",
            'for other in memory.nodes if other.op == "get_attr"',
            'for other in [written] if other.op == "get_attr"',
        ),
        ("what an embedding gives is what it writes", "operation is not None and operation.row.writes_if", "False"),
    ),
    *_many(
        "a model's own tensors",
        "vocabulary/operation.py",
        "test_writes.py vocabulary/test_resolve.py",
        ("max_norm writes nothing", "self.bound.get(self.row.writes_if[0]) is not None", "False"),
    ),
    *_many(
        "operations",
        "normalize/products.py",
        "vocabulary/test_corpus.py",
        ("a matrix is not transposed", "matrix.exact.detach().T * factor", "matrix.exact.detach().T.flip(0) * factor"),
    ),
    *_many(
        "the vocabulary",
        "vocabulary/spelling.py",
        "vocabulary/test_resolve.py",
        ("a mask's conjunction is a write", '"and": "bitwise_and"', '"and": "bitwise_and_"'),
        ("__rsub__ keeps its order", "pure.packet, swapped=True", "pure.packet, swapped=False"),
        ("+= writes nothing", "pure.packet, in_place=True", "pure.packet, in_place=False"),
    ),
    *_many(
        "the vocabulary",
        "vocabulary/binding.py",
        "vocabulary/test_resolve.py",
        ("axis= is unknown", "NUMPY.get(given)", "None"),
    ),
    *_many(
        "a model's own tensors",
        "capture/baking.py",
        "test_writes.py",
        ("max_norm is Euclidean", "ord=module.norm_type, ", ""),
        ("every row is shortened", "torch.where(norm > most, ", "torch.where(norm > 0, "),
    ),
    *_many(
        "coordinates",
        "normalize/translate.py",
        "test_normalize.py",
        ("their affines are taken for the model's", "(node in self.data or not isinstance", "(True or not isinstance"),
        ("nothing depends on the data", "            if reads or node.op == ", "            if False and node.op == "),
    ),
    *_many(
        "pieces of a weight",
        "algebra/weights.py",
        "test_linear.py",
        (
            "the last piece is left out",
            "for start in range(0, rows, step):",
            "for start in range(0, rows - step, step):",
        ),
        (
            "groups are counted within a piece",
            "torch.arange(part.start, part.stop, d",
            "torch.arange(part.stop - part.start, d",
        ),
        (
            "the response forgets the scale of the outputs",
            "response if self.out_scale is None else response *",
            "response or",
        ),
        (
            "weights may overflow",
            "        if sums and not math.isfinite(float(torch.stack(sums).sum())):",
            "        if False:",
        ),
        ("a large sum is an overflow", "if not known and not bool(torch.isfinite(rounded).all()):", "if not known:"),
        (
            "what was no number is an overflow",
            "known = isinstance(self.weight, Tensor) and not",
            "known = False and not",
        ),
        ("biases may overflow", "    if not bool(torch.isfinite(result).all()) and", "    if False and"),
        ("a copy has weights", "copy.weight, copy.bias, copy.baked =", "copy.weight, copy.bias, _ ="),
    ),
    # ------------------------------------------------------------------------------------- shapes, in-place writes
    *_many(
        "shapes",
        "graph/shape_rules.py",
        "test_shape_rules.py",
        ("a stride is forgotten", "- 1) // s + 1", "- 1) + 1"),
        ("padding counts once", "size + 2 * p", "size + p"),
        ("named padding is overlooked", "isinstance(module.padding, str)", "False"),
        ("the largest part is the sum", "shape[dim] += other.shape[dim]", "pass"),
        ("other precisions are overlooked", "and t.dtype == first.dtype", ""),
    ),
    *_many(
        "in place",
        "normalize/functionalize.py",
        "test_normalize.py",
        (
            "a write into a slice is lost",
            "            whole = _write_back(graph, base, written, node, order)\n",
            "            whole = None\n",
        ),
    ),
    # --------------------------------------------------------------------------------------- the modules, C3-C5
    *_many(
        "modules",
        "nn.py",
        "patterns/test_bn_linear.py",
        (
            "a pad of one side is none",
            "if all(type(amount) is int and amount == 0",
            "if any(type(amount) is int and amount == 0",
        ),
    ),
    *_many(
        "modules",
        "nn.py",
        "test_nn.py",
        (
            "a pad is zero",
            "return torch.where(inside, F.pad(input, padding), self.value)",
            "return F.pad(input, padding)",
        ),
        (
            "a threshold has no upper bound",
            "torch.clamp(input, self.lower, self.upper)",
            "torch.clamp(input, self.lower)",
        ),
        (
            "the leaky slopes are exchanged",
            "torch.where(distance > 0, self.right, self.left)",
            "torch.where(distance > 0, self.left, self.right)",
        ),
        ("a channel's layer always looks at dimension 1", "moved = input.movedim(self.dim, 1)", "moved = input"),
        (
            "the weight of the first summand is forgotten",
            "inputs[0] if self.weights[0] == 1 else inputs[0] * self.weights[0]",
            "inputs[0]",
        ),
    ),
    *_many(
        "names, sizes, calls",
        "graph/shapes.py",
        f"{_LINEAR_BN} {_BN_LINEAR} test_capture.py",
        (
            "no dimension is free",
            "        free = self._differing(node, shape, self.batch_variants)\n",
            "        return set()\n        free = set()\n",
        ),
    ),
    *_many(
        "guards",
        "capture/symbolic.py",
        "test_capture.py",
        ("sizes that were decided on are not guarded", "            self._guard(node, value)\n", "            pass\n"),
    ),
    *_many(
        "hooks",
        "capture/model_hooks.py",
        "test_capture.py",
        ("forward hooks are dropped in silence", '            ("forward hook", module._forward_hooks),\n', ""),
        ("backward hooks are dropped in silence", '            ("backward hook", module._backward_hooks),\n', ""),
    ),
    *_many(
        "normalizing",
        "normalize/operations.py",
        "test_normalize.py",
        (
            "a difference is a sum",
            "return _sum(ctx, (input, other), (1.0, -float(alpha)))",
            "return _sum(ctx, (input, other), (1.0, float(alpha)))",
        ),
        (
            "constant - x is x - constant",
            "return fixed_affine(ctx, other, -float(alpha), input)",
            "return fixed_affine(ctx, other, float(alpha), input)",
        ),
        (
            "dropout that is always on is dropped",
            "Same(input) if is_node(input) and (not train or p == 0) else None",
            "Same(input)",
        ),
    ),
    *_many(
        "building",
        "graph/network.py",
        "test_api.py test_normalize.py",
        (
            "two calls of a layer share one module",
            "        module = shell(original)\n        if weights is not None",
            "        module = original\n        if weights is not None",
        ),
    ),
    *_many(
        "torchscript",
        "twins/torchscript/operators.py",
        "loading/test_torchscript.py",
        (
            "a trace in training mode passes",
            'given["training"] is True and given["running_mean"] is not None',
            'given["training"] is None',
        ),
        (
            "options are dropped",
            "elif not argument.has_default_value() or not _same(value, argument.default_value):",
            "elif not argument.has_default_value():",
        ),
        (
            "a size is that of the example",
            "else tensor.size(dim)",
            "else (_example(tensor) if isinstance(tensor, fx.Proxy) else tensor).size(dim)",
        ),
    ),
    *_many(
        "torchscript",
        "twins/torchscript/program.py",
        "loading/test_torchscript.py",
        ("the other branch is taken", "unique()] else 1]", "unique()] is None else 1]"),
        ("functions are mixed up", "key = next(iter(node.inputs())).unique()", "key = 0"),
    ),
    *_many(
        "torchscript",
        "verify/oracle.py",
        "loading/test_torchscript.py",
        ("casts are not looked for", "if cast and self.dtype", "if False and self.dtype"),
    ),
    # --------------------------------------------------------------------------- what a graph was captured for
    *_many(
        "sizes",
        "capture/size_guards.py",
        "test_size_guards.py",
        ("one row is taken for granted", "rows and (free.keys() & released or not holds_for_one())", "False"),
        ("fixed sizes are not checked", "            if other == i:\n", "            if other == i < 0:\n"),
        (
            "no condition tells sizes apart",
            "return not all(condition.holds(",
            "return not bool and all(condition.holds(",
        ),
        ("every condition is kept", "return not all(condition.holds(", "return True or not all(condition.holds("),
        ("what cannot be read is passed over", "        return [], set(free)\n", "        pass\n"),
        ("floors are quotients", "ast.FloorDiv: operator.floordiv", "ast.FloorDiv: operator.truediv"),
        (
            "conditions in a row are any",
            "return _joined(operator.and_, parts, apply)",
            "return _joined(operator.or_, parts, apply)",
        ),
    ),
    *_many(
        "flags",
        "capture/captured.py",
        "test_size_guards.py",
        ("any flag may be left out", " or own != values[i]:", ":"),
    ),
    *_many(
        "questions",
        "capture/proxies.py",
        "test_questions.py",
        ("isinstance is asked of the proxy", "or (known is not Unknown and real(known, classes))", ""),
        ("every attribute is there", "if value is not Unknown and not hasattr(value, name):", "if False:"),
        ("tables are searched for proxies", "return hash(_plain(proxy))", "return object.__hash__(self)"),
        ("names are those of proxies", "named = type(self) is SizedAttribute and", "named = False and"),
    ),
    *_many(
        "questions",
        "capture/symbolic.py",
        "test_questions.py",
        ("swallowed errors are believed", "if tracer.failure is not None:", "if False:"),
        ("the device is that of shapes", "if on_device is not Unknown:", "if False:"),
    ),
    *_many(
        "values that are read",
        "capture/symbolic.py",
        "capture/test_values_read.py",
        (
            "the example's value is baked in",
            "            if shapes.reads_data(node):\n",
            "            if False:\n",
        ),
    ),
    *_many(
        "numbers of pieces",
        "capture/symbolic.py",
        "capture/test_pieces.py",
        ("there are as many pieces as in the example", "if varies and node not in self.counted:", "if False:"),
    ),
    *_many(
        "sizes",
        "inputs/sizes.py",
        "capture/test_sizes_free.py",
        ("lengths of sequences are channels", "*(alike[size] for size in sorted(alike, reverse=True)),", ""),
    ),
    *_many(
        "aliases",
        "capture/export_trace.py",
        "capture/test_aliases.py",
        ("idle dropout makes a copy", "            return args[0]\n", "            return args[0].clone()\n"),
    ),
    *_many(
        "conformance",
        "capture/conformance.py",
        "capture/test_conformance.py",
        (
            "differences are passed over",
            "if one is None or other is None or not one.same_as(other):",
            "if False:",
        ),
        ("gradients of exported graphs are believed", "    if not alike(wanted, tracked.output):\n", "    if False:\n"),
    ),
    *_many(
        "conformance",
        "capture/events.py",
        "capture/test_conformance.py",
        ("autocast is dropped", "if torch._C._is_any_autocast_enabled():", "if False:"),
    ),
    *_many(
        "time limits",
        "errors.py",
        "capture/test_taken.py",
        ("a time limit is a failed trace", "    if isinstance(error, TimeoutError):\n        return True\n", ""),
        (
            "what a signal raises is a failed trace",
            "        if trace.tb_frame.f_code in handlers:\n",
            "        if False:\n",
        ),
    ),
    *_many(
        "words",
        "capture/wording.py",
        "capture/test_taken.py",
        ("how data was computed is told", "if depth > _DEEPEST or self._is_data(node):", "if depth > _DEEPEST:"),
    ),
    *_many(
        "constants",
        "normalize/constants.py",
        "test_normalize.py",
        ("integers become float32", "with torch.no_grad(), in_float64():", "with torch.no_grad():"),
    ),
    *_many(
        "precision",
        "graph/network.py",
        "patterns/test_casts.py",
        ("all is rounded to the model's precision", "tensor.rounding or own", "own"),
    ),
    *_many(
        "shapes",
        "graph/shapes.py",
        "test_form.py",
        (
            "a view is one of memory",
            "if isinstance(node.target, torch._ops.OpOverload) and _only_views(node):",
            "if False:",
        ),
    ),
    *_many(
        "shapes",
        "graph/shape_rules.py",
        "test_shape_rules.py",
        ("every size of a pooling's output is fixed", "if size is not None}", "}"),
        ("a flattening has a fixed size", "and behind <= of_input() else set()", "else set()"),
        (
            "a convolution's channels are its input's",
            "    if kind in _CONVOLUTIONS:\n        return {1}",
            "    if kind in _CONVOLUTIONS:\n        return {2}",
        ),
    ),
    *_many(
        "affine",
        "algebra/affine.py",
        "test_affine.py",
        ("layers run into each other", "starts = ends - sizes", "starts = ends - sizes + (ends > sizes)"),
        (
            "shifts are taken for constant",
            "_any_between(starts, torch.maximum(ends - 1, starts), part[1:] != part[:-1])",
            "[False] * len(layers)",
        ),
        ("nothing is wrong", "not wrong[i]", "True"),
    ),
    *_many(
        "linear",
        "algebra/weights.py",
        "test_linear.py patterns/test_parallel_linear.py",
        (
            "pieces share one memory",
            "    buffer = _pool.free.pop() if _pool.free else None\n",
            "    buffer = _pool.free[-1] if _pool.free else None\n",
        ),
        (
            "pieces are added to what was there",
            "self.weight.add_to(piece.zero_(), part, 1.0)",
            "self.weight.add_to(piece, part, 1.0)",
        ),
    ),
    *_many(
        "verdict",
        "verify/judge.py",
        "patterns/test_casts.py verify/test_equivalence.py",
        ("a candidate excuses itself", "_MOST_SENSITIVE = 8.0", "_MOST_SENSITIVE = 1e9"),
        ("a jump fails", "return bool(beyond) and all(beyond)", "return False"),
        ("a jump excuses everything", "d.error <= _JUMP_FACTOR * response", "True"),
    ),
    *_many(
        "verdict",
        "verify/regimes.py",
        "verify/test_conditions.py",
        ("no odd sizes", "size + (1 if axis % 2 else -1)", "size * 2"),
        ("no pixels", "(256 * _image(example, generator)).floor()", "_image(example, generator)"),
        ("no other memory format", "last = torch.channels_last\n", "last = torch.contiguous_format\n"),
        ("no NaN", "torch.full(example.shape, torch.nan, dtype", "torch.full(example.shape, 2.0, dtype"),
    ),
    *_many(
        "files",
        "export/atomic.py",
        "export/test_places.py",
        (
            "a link is replaced",
            "real = Path(os.path.realpath(path)) if path.is_symlink() else path\n    _remove",
            "real = path\n    _remove",
        ),
        ("a running writer's file is removed", "if match is None or _is_running(int(match[1])):", "if match is None:"),
        (
            "what was killed stays",
            "            else:\n                _remove(left)",
            "            else:\n                pass",
        ),
    ),
    *_many(
        "files",
        "export/__init__.py",
        "export/test_places.py",
        ("inputs are guessed", "if isinstance(seen, Inputs):", "if False:"),
    ),
    *_many(
        "dtypes",
        "normalize/translate.py",
        "test_dtypes.py",
        ("a wider constant is narrowed", "if widened is not None and", "if False and"),
    ),
    *_many(
        "verdict",
        "verify/usage.py",
        "verify/test_conditions.py",
        ("dtypes are not compared", "        if odd:\n", "        if False:\n"),
        ("writes are not seen", "    if written:\n", "    if False:\n"),
        ("a second call may differ", "if measure.first_nonfinite(first) is None:", "if False:"),
    ),
    *_many(
        "verdict",
        "verify/equivalence.py",
        "verify/test_equivalence.py",
        ("weights alone are proof", "Verdict(answered and not failed", "Verdict(bool(checks) and not failed"),
    ),
    *_many(
        "threads",
        "compat/threads.py",
        "test_threads.py",
        ("everybody's warnings are ignored", "return self.thread == threading.get_ident()", "return True"),
        (
            "everybody's function is replaced",
            "(mine[-1] if mine else original)(",
            "(next(iter(table.values()))[-1] if table else original)(",
        ),
        ("the generator is set back", 'hasattr(aot_autograd, "preserve_rng_state")', "False"),
    ),
    *_many(
        "threads",
        "twins/float64.py",
        "test_threads.py",
        ("made again from rounded values", "for given, named in attempts:", "for given, named in attempts[:0]:"),
        ("integers are divided in float32", "leaf.double() if (masks", "leaf.float() if (masks"),
    ),
    *_many(
        "threads",
        "twins/randomness.py",
        "test_threads.py",
        ("the global generator is asked", "if generator is not None:", "if False:"),
        ("noise repeats", "if device not in self._generators:", "if True:"),
    ),
    *_many(
        "threads",
        "capture/symbolic.py",
        "test_threads.py",
        (
            "another thread's weights are traced",
            "        if self.at_rest or threading.get_ident() != self.thread:\n            return attr_val\n",
            "        if self.at_rest:\n            return attr_val\n",
        ),
    ),
    *_many(
        "extras",
        "compat/extras.py",
        "test_extras.py",
        ("a name that nobody registered", "    if not url:\n", "    if True:\n"),
        ("an extra that does not help", "if sys.version_info < first:", "if False:"),
    ),
    *_many(
        "recognised normalisations",
        "normalize/recognise/root_mean_square.py",
        "test_recognise.py",
        (
            "any power will do",
            "_power(_operation(network, factor)) != power",
            "_power(_operation(network, factor)) is None",
        ),
        (
            "the numerator may be anything",
            "if not _same_value(network, _uncast(network, numerator), source):",
            "if False:",
        ),
        ("a factor inside is overlooked", " or float(affine.scale) != 1.0", ""),
        ("the weight on the numerator is lost", "        if found.scaled is not None:", "        if False:"),
        (
            "the precision inside is lost",
            "None if found.inner == _dtype(network, found.source) else found.inner",
            "None",
        ),
    ),
    *_many(
        "onnx",
        "loading/onnx/operators.py",
        "loading/test_onnx_corpus.py",
        ("negative axes are taken as they are", "sorted(a % rank for a in numbers)", "sorted(numbers)"),
        ("borders change places", "= [before, after]", "= [after, before]"),
        (
            "a size of 1 is a size",
            "[-1 if size == 1 and index >= new else size for index, size in enumerate(wanted)]",
            "wanted",
        ),
    ),
    *_many(
        "recognised activations",
        "normalize/recognise/activation.py",
        "test_recognise_activations.py",
        ("what comes close is the same", "_AGREES = 1e-13", "_AGREES = 1e-3"),
        ("values that are read inside go", "if len(inside) > 1 and all(", "if len(inside) > 1 or all("),
        ("the shift is overlooked", " * scale + shift", " * scale"),
    ),
)

"""Errors to plant: one slip each, of the kinds that folding code really has; ``tests/mutate.py`` plants them.

Each is a piece of the package, anchored to the function that it stands in and to what it says, not to a file or to a
layout (``tests/anchors.py``), what it becomes, and the tests that must notice.
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
    where : str
        Qualified name of the function, class or variable that holds the piece.
    old, new : str
        An expression or statements that occur there exactly once, and what replaces them.
    tests : tuple of str
        Files below ``tests/`` of which at least one test must fail.
    """

    about: str
    slip: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]


def _many(about: str, tests: str, *slips: tuple[str, str, str, str]) -> tuple[Mutant, ...]:
    return tuple(Mutant(about, slip, where, old, new, tuple(tests.split())) for slip, where, old, new in slips)


MUTANTS: tuple[Mutant, ...] = (
    *_many(
        "relevance",
        "explain/test_members.py",
        (
            "a quotient has a rule whatever it divides by",
            "RelevantOperation.has_rule",
            "divided_by = any(carries for place, carries in enumerate(self.carrying) if place in divisors)",
            "divided_by = False",
        ),
        ("a block in one piece is not looked into", "is_at", "where.startswith(f'{name}.')", "False"),
        ("a sum forgets its weights", "SumNorm.shares", "weight * value * ratio", "value * ratio"),
        (
            "the stabilizer of a product is not the composite's",
            "_instead_of_norm.ratio",
            "mapper(relevance, [output])",
            "relevance / output",
        ),
        (
            "one value as both factors counts once",
            "ProductEpsilon.shares",
            "carried[signal]",
            "1",
        ),
        (
            "a computed bias gets half",
            "ProductEpsilon.shares",
            "parts[operands.addend] * degree",
            "parts[operands.addend]",
        ),
        (
            "the box goes to layers that read features, too",
            "_first_of",
            "not any(source in mixed for source in node.all_input_nodes)",
            "True",
        ),
        (
            "zennit's first layer is one alone",
            "PixelRules.at.translate",
            "hook if self.rule is None or self.rule is hook else self.rule.copy()",
            "hook",
        ),
        ("a refused composite stays half registered", "Adopted._handle", "self.undo()", "None"),
        ("classes below 0 count from the end", "refuse_class", "not 0 <= index < classes", "index >= classes"),
        ("captum's targets are not looked at", "check_target", "place + 1 < len(shape)", "False"),
        (
            "overlapping windows share by copies",
            "_Maximum.backward",
            "rise / torch.where(moved == 0, 1, moved)",
            "torch.ones_like(rise)",
        ),
        (
            "products in DeepLIFT take the gradient",
            "_Product.backward",
            "_mean_of_pair(factor)",
            "factor.detach().clone()",
        ),
        ("contributions need not add up", "incomplete", "gap > allowed and scale > 0", "False"),
        ("mixed samples are multiplied by each other's outputs", "_mixes_samples", "count < 2", "True"),
        (
            "parts of tuples are not in the ledger",
            "Bookkeeper._before.before",
            "pytree.tree_map(lambda part, at=place: self._watched(page, at, part), value)",
            "self._watched(page, place, value)",
        ),
    ),
    *_many(
        "relevance",
        "explain/test_law.py",
        (
            "the share of a bias is not written down",
            "Bookkeeper._explain",
            "_share_of_bias(hook, module, page.above)",
            "0.0",
        ),
        (
            "wrapped graphs are not found",
            "graphs_in",
            "isinstance(module, fx.GraphModule) and not inside",
            "isinstance(module, fx.GraphModule) and not inside and not name",
        ),
        (
            "operations without a rule pass on canonical models",
            "LawWatch.behind",
            "own and self.unruled == 'refuse'",
            "False",
        ),
    ),
    *_many(
        "relevance",
        "explain/test_published.py",
        (
            "thresholds pass by default",
            "RuleComposite._other",
            "choices.threshold == 'pass' and self.method.activations",
            "self.method.activations",
        ),
        ("what is padded keeps its share", "_inside.modified", "value * mask", "value"),
        (
            "a branch without a layer splits a BatchNorm of the untangled form",
            "Untangle.check",
            "isinstance(whole, Refused)",
            "False",
        ),
    ),
    *_many(
        "relevance",
        "explain/test_other_explainers.py",
        ("a block that differs by an affine counts as the same", "_giving", "_same(relation, needed)", "True"),
        ("a block's value is any that it holds", "_returned", "any(user not in own for user in node.users)", "True"),
    ),
    *_many(
        "verdicts",
        "evaluate/test_verdicts.py",
        (
            "rounding is a verdict",
            "_verdict",
            "abs(difference) > row['floor'] and row['p_corrected'] < LEVEL",
            "row['p_corrected'] < LEVEL",
        ),
        (
            "controls get verdicts",
            "_verdict",
            "row['control']",
            "False",
        ),
        (
            "every comparison stands alone",
            "holm",
            "(len(p_values) - np.arange(len(p_values))) * np.asarray(p_values)[order]",
            "1 * np.asarray(p_values)[order]",
        ),
        (
            "a later p-value may be below an earlier one",
            "holm",
            "np.maximum.accumulate(weighed)",
            "weighed",
        ),
        (
            "the floor is that of the first canonization alone",
            "_floors",
            "both.max(axis=1)",
            "both['noise_before']",
        ),
    ),
    *_many(
        "noise",
        "evaluate/test_verdicts.py",
        (
            "weights do not move",
            "rounded_otherwise.moved",
            "torch.finfo(tensor.dtype).eps",
            "0",
        ),
        (
            "a moved activation makes no difference",
            "is_control",
            "name in BY_ACTIVATION",
            "False",
        ),
    ),
    *_many(
        "layer groups",
        "explain/test_groups.py",
        (
            "groups are thirds",
            "_borders",
            "-(-layers // (2 * groups - 2))",
            "layers // groups",
        ),
    ),
    *_many(
        "named groups",
        "explain/test_groups.py",
        (
            "places are counted from 0",
            "_matching",
            "max(first, 1) - 1",
            "max(first, 1)",
        ),
    ),
    *_many(
        "channels to pixels",
        "evaluate/test_metrics.py",
        (
            "negative relevance is squared too",
            "pooled",
            "relevance.clamp(min=0) if pooling == 'pos-l2-norm-sq' else relevance",
            "relevance if True else relevance",
        ),
        (
            "the second moment is the largest",
            "normalised",
            "scaled.square().mean((1, 2), keepdim=True).sqrt()",
            "1",
        ),
    ),
    *_many(
        "steps of pixel flipping",
        "evaluate/test_metrics.py",
        (
            "steps do not grow",
            "growing",
            "first * growth ** step",
            "first",
        ),
        (
            "the area is over steps, not over pixels",
            "area_under_curve",
            "(places / places[-1]).to(curve)",
            "torch.linspace(0, 1, curve.shape[1])",
        ),
    ),
    *_many(
        "localisation by size",
        "evaluate/test_sizes.py",
        (
            "large objects count as small",
            "_entry",
            "part[part['area'] < BELOW[size]]",
            "part",
        ),
    ),
    *_many(
        "misfits",
        "evaluate/test_command.py",
        (
            "labels beyond the outputs go through",
            "check_classes",
            "largest >= outputs.shape[1]",
            "False",
        ),
    ),
    *_many(
        "extremes",
        "search/test_search.py",
        (
            "the best is the worst",
            "extremes",
            "metric(objective).better == 'lower'",
            "metric(objective).better != 'lower'",
        ),
    ),
    *_many(
        "hand-over",
        "explain/test_hdf5.py",
        (
            "dark pictures wrap",
            "as_picture",
            "data.round().clamp(0, 255)",
            "data.to(torch.int64)",
        ),
    ),
    *_many(
        "data",
        "evaluate/test_data.py",
        (
            "pictures of several classes have one",
            "PascalVoc.take",
            "torch.tensor(present)",
            "torch.ones(len(present))",
        ),
        (
            "objects at the border are cut away",
            "_read",
            "name != 'voc'",
            "True",
        ),
        (
            "a complex question takes the unique mask",
            "USUAL",
            "'union'",
            "'unique'",
        ),
        (
            "a mask that is missing is an error",
            "ClevrXai._mask",
            "name != 'object'",
            "False",
        ),
    ),
    *_many(
        "affine",
        "test_affine.py",
        (
            "eps is forgotten",
            "_normalising",
            "var + eps",
            "var",
        ),
        (
            "the mean has the wrong sign",
            "_normalising",
            "-mean",
            "mean",
        ),
        (
            "the mean is not scaled",
            "_normalising",
            "-mean * scale",
            "-mean",
        ),
        (
            "the bias is forgotten",
            "_normalising",
            "shift + bias.detach().to(EXACT)",
            "shift",
        ),
        (
            "composition forgets the second scale",
            "Affine.after",
            "self.scale * first.shift",
            "first.shift",
        ),
        (
            "z has the wrong sign",
            "Affine.zero",
            "-self.shift",
            "self.shift",
        ),
        (
            "no channel is dead",
            "Affine.dead",
            "torch.logical_or(scale == 0, overflows & drowns)",
            "torch.zeros_like(scale == 0)",
        ),
        (
            "only exact zeros are dead",
            "Affine.dead",
            "torch.logical_or(scale == 0, overflows & drowns)",
            "scale == 0",
        ),
        (
            "what overflows is dead",
            "Affine.dead",
            "torch.logical_or(scale == 0, overflows & drowns)",
            "(scale == 0) | overflows",
        ),
        (
            "only neighbours are compared",
            "_compress",
            "(tensor == first).all",
            "(tensor[:2] == first).all",
        ),
        (
            "layers run into each other",
            "batch_norms",
            "ends - sizes",
            "ends - sizes + (ends > sizes)",
        ),
        (
            "shifts are taken for constant",
            "batch_norms",
            "_any_between(starts, torch.maximum(ends - 1, starts), part[1:] != part[:-1])",
            "[False] * len(layers)",
        ),
        (
            "nothing is wrong",
            "batch_norms",
            "not wrong[i]",
            "True",
        ),
    ),
    *_many(
        "pending weights",
        "test_linear.py",
        (
            "groups of a transposed convolution are forgotten",
            "PendingWeights._groups_of",
            "self.weight.shape[0] // self.groups",
            "self.weight.shape[0]",
        ),
        (
            "the old bias is not scaled",
            "PendingWeights.absorb_output",
            "self.bias * scale + shift",
            "self.bias + shift",
        ),
        (
            "the old bias is dropped",
            "PendingWeights.absorb_output",
            "self.bias * scale + shift",
            "shift",
        ),
        (
            "the response forgets the old bias",
            "PendingWeights.absorb_input",
            "response if self.bias is None else self.bias + response",
            "response",
        ),
        (
            "input and output channels are mixed up",
            "PendingWeights._rescale",
            "of_inputs, of_outputs = (of_outputs, of_inputs)",
            "pass",
        ),
        (
            "the bias is taken up after the scale",
            "PendingWeights.absorb_input",
            (
                "if bool(shift.any()):\n"
                "    response = self.response_to(shift)\n"
                "    self.bias = response if self.bias is None else self.bias + response\n"
                "    self.bias_touched = True"
            ),
            (
                "self.in_scale = scale if self.in_scale is None else self.in_scale * scale\n"
                "scale = scale * 0 + 1\n"
                "if bool(shift.any()):\n"
                "    response = self.response_to(shift)\n"
                "    self.bias = response if self.bias is None else self.bias + response\n"
                "    self.bias_touched = True"
            ),
        ),
        (
            "a second scale replaces the first",
            "PendingWeights.absorb_output",
            "self.out_scale * scale",
            "scale",
        ),
        (
            "a clone forgets what is pending",
            "PendingWeights.clone",
            "self.in_scale",
            "None",
        ),
        (
            "a transposed convolution's channels are the other way round",
            "PendingWeights.out_channels",
            "self.weight.shape[1] * self.groups",
            "self.weight.shape[0]",
        ),
    ),
    *_many(
        "linear_bn",
        "patterns/test_linear_bn.py",
        (
            "a dense layer takes dimension 1",
            "linear_takes_output",
            "-1",
            "1",
        ),
        (
            "a convolution loses the shift",
            "convolution_takes_output",
            "TakeOutput(scale, shift)",
            "TakeOutput(scale, shift * 0)",
        ),
        (
            "a missing batch dimension goes unnoticed",
            "_require_batched",
            "step.require(affine.ndim == rank, f'{step.label()} is called without a batch dimension')",
            "pass",
        ),
        (
            "an affine that differs along other dimensions passes",
            "channel_vectors",
            "not others",
            "True",
        ),
        (
            "an explicit layer takes dimension 1 whatever its own",
            "channel_linear_takes_output",
            "TakeOutput(scale, shift)",
            "TakeOutput(scale * 1.0, shift * 2.0)",
        ),
        (
            "it passes concatenations, too",
            "LinearThenBatchNorm.check",
            "LINEAR_WAY",
            "LINEAR_WAY | {'concat'}",
        ),
    ),
    *_many(
        "bn_linear",
        "patterns/test_bn_linear.py",
        (
            "a dense layer loses the shift",
            "linear_takes_input",
            "TakeInput(scale, shift)",
            "TakeInput(scale, shift * 0)",
        ),
        (
            "the border stays zero",
            "convolution_takes_input",
            "any(padding) and module.padding_mode == 'zeros' and bool(shift.any())",
            "False",
        ),
        (
            "every padding mode is taken for zeros",
            "convolution_takes_input",
            "any(padding) and module.padding_mode == 'zeros' and bool(shift.any())",
            "any(padding) and bool(shift.any())",
        ),
        (
            "the convolution goes on padding",
            "convolution_takes_input",
            "(0,) * len(module.kernel_size)",
            "module.padding",
        ),
        (
            "a stride of a transposed convolution is overlooked",
            "transposed_convolution_takes_input",
            "all((s == 1 for s in module.stride))",
            "True",
        ),
        (
            "the rim of a transposed convolution is one too thin",
            "transposed_convolution_takes_input",
            "max(0, d * (k - 1) - p, d * (k - 1) - p + o)",
            "max(0, d * (k - 1) - p - 1, d * (k - 1) - p + o - 1)",
        ),
        (
            "dilation is forgotten in the rim",
            "transposed_convolution_takes_input",
            "max(0, d * (k - 1) - p, d * (k - 1) - p + o)",
            "max(0, k - 1 - p, k - 1 - p + o)",
        ),
        (
            "output padding is forgotten in the rim",
            "transposed_convolution_takes_input",
            "max(0, d * (k - 1) - p, d * (k - 1) - p + o)",
            "max(0, d * (k - 1) - p)",
        ),
        (
            "the rim is not cropped again",
            "transposed_convolution_takes_input",
            "(p + rim for p, rim in zip(module.padding, rims, strict=True))",
            "module.padding",
        ),
        (
            "an explicit layer behind takes twice the shift",
            "channel_linear_takes_input",
            "TakeInput(scale, shift)",
            "TakeInput(scale, 2 * shift)",
        ),
        (
            "it passes activations, too",
            "BatchNormThenLinear.check",
            "LINEAR_WAY",
            "LINEAR_WAY | {'activation'}",
        ),
        (
            "it passes nothing",
            "BatchNormThenLinear.check",
            "LINEAR_WAY",
            "frozenset()",
        ),
    ),
    *_many(
        "movement",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py test_zoo.py",
        (
            "forward, the shift stays where it was",
            "moves_forward",
            "_move(step, shift.cpu()).to(shift.device)",
            "shift.mean().reshape((1,) * len(step.shape()))",
        ),
        (
            "forward, every rearrangement is taken for a cast",
            "moves_forward",
            "_keeps_places(step)",
            "len(step.shape()) == affine.ndim",
        ),
        (
            "backward, every rearrangement is taken for a cast",
            "moves_backward",
            "_keeps_places(step, back=True)",
            "len(step.shape()) == len(step.shape(_data(step)))",
        ),
        (
            "backward, elements that are shown twice may disagree",
            "_collect",
            "torch.equal(found[places], values)",
            "True",
        ),
        (
            "backward, elements that others read are free to choose",
            "moves_backward",
            "len(step.network.readers(_data(step))) > 1",
            "False",
        ),
        (
            "backward, what is not shown is scaled by zero",
            "moves_backward",
            "(1.0, 0.0)",
            "(0.0, 1.0)",
        ),
    ),
    *_many(
        "padding",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py",
        (
            "forward, the constant stays",
            "pad_forward",
            "_replace(step, padding, value, _before(step, affine, value))",
            "pass",
        ),
        (
            "forward, the shift is added instead of taken away",
            "_before",
            "affine.shift - value",
            "affine.shift + value",
        ),
        (
            "forward, padded channels get an affine",
            "pad_forward",
            "0.0",
            "1.0",
        ),
        (
            "backward, the constant stays",
            "pad_backward",
            "_replace(step, padding, value, affine.scale * value + affine.shift)",
            "pass",
        ),
        (
            "backward, the constant is not scaled",
            "pad_backward",
            "affine.scale * value",
            "value",
        ),
    ),
    *_many(
        "pooling",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py",
        (
            "forward, counted padding stays zero",
            "window_forward",
            "_explicit_padding(step, affine, lambda: step.living_zero(affine))",
            "pass",
        ),
        (
            "backward, counted padding stays zero",
            "window_backward",
            "_explicit_padding(step, affine, lambda: affine.shift)",
            "pass",
        ),
        (
            "forward, the border is the shift",
            "window_forward",
            "step.living_zero(affine)",
            "affine.shift",
        ),
        (
            "padding that is not counted becomes explicit",
            "_explicit_padding",
            "not any(padding) or not module.count_include_pad",
            "not any(padding)",
        ),
        (
            "sizes that are rounded up are overlooked",
            "_explicit_padding",
            (
                "step.require(not module.ceil_mode, f'{step.label()} counts its padding and rounds its "
                "size up, which explicit padding cannot do')"
            ),
            (
                "step.require(True, f'{step.label()} counts its padding and rounds its size up, which "
                "explicit padding cannot do')"
            ),
        ),
        (
            "any divisor will do",
            "_explicit_padding",
            "module.divisor_override == kernel and (not any(padding)) and (not module.ceil_mode)",
            "True",
        ),
        (
            "the padding is on one side only",
            "_explicit_padding",
            "(p, p)",
            "(2 * p, 0)",
        ),
        (
            "negative scales pass a maximum",
            "_check_maximum",
            "bool((affine.scale >= 0).all())",
            "True",
        ),
        (
            "indices of maxima are overlooked",
            "_check_maximum",
            "not module.return_indices",
            "True",
        ),
        (
            "affines that differ from position to position pass",
            "same_everywhere",
            "{0, 1}",
            "{0, 1, 2, 3}",
        ),
        (
            "forward, a sum does not multiply the shift",
            "reduce_forward",
            "shift.expand(full).sum",
            "shift.expand(full).mean",
        ),
        (
            "forward, a mean adds the shifts up",
            "reduce_forward",
            "shift.mean",
            "shift.sum",
        ),
        (
            "a scale that differs along a sum passes",
            "reduce_forward",
            "all((across.shape[d] == 1 for d in module.dim))",
            "True",
        ),
        (
            "backward, a sum does not share the shift out",
            "reduce_backward",
            "shift / count",
            "shift * 1",
        ),
        (
            "a free number of positions goes unnoticed",
            "_require_fixed_count",
            "not free",
            "True",
        ),
        (
            "a dimension that the sum drops is taken from the wrong end",
            "reduce_forward",
            "sorted(module.dim, reverse=True)",
            "sorted(module.dim)",
        ),
    ),
    *_many(
        "calls",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py test_zoo.py",
        (
            "any call passes forward",
            "call_forward",
            "not _is_resizing(step.module) or any((affine is not None for affine in incoming[1:]))",
            "any((affine is not None for affine in incoming[1:]))",
        ),
        (
            "any call passes backward",
            "call_backward",
            (
                "if factors(step.module) and (not _is_resizing(step.module)):\n"
                "    return product_backward(step, affine)\n"
                "if not _is_resizing(step.module):\n"
                "    raise _refusal(step)\n"
                "same_everywhere(step, affine)"
            ),
            (
                "if factors(step.module) and (not _is_resizing(step.module)):\n"
                "    return product_backward(step, affine)\n"
                "same_everywhere(step, affine)"
            ),
        ),
    ),
    *_many(
        "attention",
        "test_zoo.py",
        (
            "the shift is forgotten",
            "TakeProjections.apply",
            ("scale, shift = part\nbias[rows] += weight[rows] @ shift\nweight[rows] *= scale"),
            ("scale, shift = part\nweight[rows] *= scale"),
        ),
        (
            "every input is taken for the query",
            "TakeProjections.apply",
            "slice(i * width, (i + 1) * width)",
            "slice(0, width)",
        ),
    ),
    *_many(
        "edits",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py patterns/test_bn_activation_linear.py",
        (
            "two affines in a row are composed the wrong way round",
            "Compose.apply",
            "self.affine.after(own.affine) if self.behind else own.affine.after(self.affine)",
            "own.affine.after(self.affine) if self.behind else self.affine.after(own.affine)",
        ),
        (
            "an affine disappears into the next",
            "Compose.apply",
            "self.affine.after(own.affine) if self.behind else own.affine.after(self.affine)",
            "own.affine",
        ),
        (
            "edits of one kind are all alike",
            "Edit.__eq__",
            "all((_equal(a, b) for a, b in zip(mine, theirs, strict=True)))",
            "True or all((_equal(a, b) for a, b in zip(mine, theirs, strict=True)))",
        ),
        (
            "a layer goes on padding",
            "PadBefore.apply",
            "network.configure(node, **dict(self.settings))",
            "pass",
        ),
    ),
    *_many(
        "plans walked once",
        "patterns/test_bn_activation_linear.py patterns/test_concat_bn.py",
        (
            "an answer outlives a change",
            "Network._changed",
            "self._answers.pop(question, None)",
            "pass",
        ),
    ),
    *_many(
        "matrix products",
        "patterns/test_bn_linear.py",
        (
            "forward, the numbers of the two factors are not multiplied",
            "product_forward",
            "affine.scale.reshape(()) if scale is None else scale * affine.scale.reshape(())",
            "affine.scale.reshape(())",
        ),
        (
            "a shift passes",
            "_require_one_number",
            "affine.is_linear",
            "True",
        ),
        (
            "one number per channel passes",
            "_require_one_number",
            "not affine.varying()",
            "True",
        ),
    ),
    *_many(
        "sums",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py patterns/test_bn_activation_linear.py",
        (
            "forward, one side alone may carry a scale",
            "sum_forward",
            "all((bool((a.scale == 1).all()) for a in affines))",
            "True",
        ),
        (
            "forward, the sides may carry different scales",
            "sum_forward",
            "bool(torch.eq(*torch.broadcast_tensors(scale, other.scale)).all())",
            "True",
        ),
        (
            "forward, the weight of a side is forgotten",
            "sum_forward",
            "_widened(affine, ndim).shift * weight",
            "_widened(affine, ndim).shift",
        ),
        (
            "forward, only one side's shift counts",
            "sum_forward",
            "part if shift is None else shift + part",
            "part",
        ),
        (
            "backward, both sides take the shift",
            "sum_backward",
            "affine.shift / module.weights[i] if i == takes else torch.zeros_like(affine.shift)",
            "affine.shift / module.weights[i]",
        ),
        (
            "backward, the weight of a side is forgotten",
            "sum_backward",
            "affine.shift / module.weights[i] if i == takes else torch.zeros_like(affine.shift)",
            "affine.shift if i == takes else torch.zeros_like(affine.shift)",
        ),
        (
            "backward, a value may be added to itself",
            "sum_backward",
            "len(set(inputs)) == len(inputs)",
            "True",
        ),
        (
            "backward, a broadcast side takes an affine that it cannot hold",
            "_narrowed",
            "size > 1",
            "True",
        ),
        (
            "backward, a broadcast side takes the shift",
            "sum_backward",
            "shape == step.shape() and module.weights[i]",
            "module.weights[i]",
        ),
        (
            "forward, a shift passes a product",
            "gate_forward",
            (
                "step.require(affine.is_linear, f'a shift does not pass the product {step.label()}')\n"
                "part = _widened(affine, ndim).scale"
            ),
            "part = _widened(affine, ndim).scale",
        ),
        (
            "backward, a shift passes a product",
            "gate_backward",
            (
                "step.require(affine.is_linear, f'a shift does not pass the product {step.label()}')\n"
                "signal, gate = step.network.data_inputs(step.node)"
            ),
            "signal, gate = step.network.data_inputs(step.node)",
        ),
        (
            "backward, both factors take the scale",
            "gate_backward",
            "[_narrowed(step, affine, step.shape(signal), signal), None]",
            "[_narrowed(step, affine, step.shape(signal), signal), affine]",
        ),
    ),
    *_many(
        "concatenations",
        "patterns/test_concat_bn.py patterns/test_concat_linear.py",
        (
            "slices are one off",
            "_slice",
            "tensor.narrow",
            "tensor.roll(1, dim).narrow",
        ),
        (
            "every branch takes the first slice",
            "concat_backward",
            (
                "for node in inputs:\n"
                "    size = step.shape(node)[dim]\n"
                "    part = Affine(_slice(affine.scale, dim, start, size), _slice(affine.shift, dim, "
                "start, size)).compress()\n"
                "    needed.append(None if part.is_identity else part)\n"
                "    start += size\n"
                "return needed"
            ),
            (
                "for node in inputs:\n"
                "    size = step.shape(node)[dim]\n"
                "    part = Affine(_slice(affine.scale, dim, start, size), _slice(affine.shift, dim, "
                "start, size)).compress()\n"
                "    needed.append(None if part.is_identity else part)\n"
                "return needed"
            ),
        ),
        (
            "forward, a branch without an affine takes its neighbour's",
            "concat_forward",
            "Affine.identity(ndim, device)",
            "next((b for b in incoming if b is not None))",
        ),
        (
            "forward, the branches are in the other order",
            "concat_forward",
            "torch.cat(scales, dim)",
            "torch.cat(scales[::-1], dim)",
        ),
        (
            "forward, a negative dimension is taken literally",
            "concat_forward",
            "module.dim",
            "abs(module.dim)",
        ),
        (
            "backward, a negative dimension is taken literally",
            "concat_backward",
            "module.dim",
            "abs(module.dim)",
        ),
    ),
    *_many(
        "bn_activation_linear",
        "patterns/test_bn_activation_linear.py",
        (
            "z has the wrong sign",
            "_bounded",
            "_swapped(safe < 0, (low - shift) / safe, (high - shift) / safe)",
            "_swapped(safe < 0, (low + shift) / safe, (high + shift) / safe)",
        ),
        (
            "negative scales are overlooked",
            "_bounded",
            "safe < 0",
            "safe != safe",
        ),
        (
            "the upper bound is not moved",
            "_swapped",
            "torch.where(where, first, second)",
            "second",
        ),
        (
            "a dead channel is the constant t",
            "_bounded",
            "shift.clamp(low, high)",
            "shift",
        ),
        (
            "a dead channel keeps its scale",
            "_safe",
            "torch.ones_like",
            "torch.zeros_like",
        ),
        (
            "a dead channel keeps its shift",
            "_behind",
            "shift if dead is None else torch.where(dead, torch.zeros_like(shift), shift)",
            "shift",
        ),
        (
            "a threshold that overflows goes unnoticed",
            "_channels",
            "bool(((shift.abs() <= scale.abs() * largest) | dead).all())",
            "True",
        ),
        (
            "the kink stays at zero",
            "_bounded",
            "low == 0 and (not has_upper) and (not bool(lower.any()))",
            "low == 0 and (not has_upper)",
        ),
        (
            "a threshold that is there already loses its upper bound",
            "thresholds_pass",
            "(high - shift) / safe",
            "infinite",
        ),
        (
            "a threshold that is there already is not sorted again",
            "thresholds_pass",
            "(torch.minimum(first, second), torch.maximum(first, second))",
            "(first, second)",
        ),
        (
            "a threshold's dead channel ignores its bounds",
            "thresholds_pass",
            "torch.minimum(torch.maximum(shift, low), high)",
            "shift",
        ),
        (
            "the leaky kink has the wrong sign",
            "leaky_rectifier_passes",
            "-shift",
            "shift",
        ),
        (
            "a negative scale does not exchange the slopes",
            "leaky_rectifier_passes",
            "_swapped(safe < 0, slope, torch.ones_like(scale))",
            "(slope, torch.ones_like(scale))",
        ),
        (
            "a dead leaky channel forgets its slope",
            "leaky_rectifier_passes",
            "slope * shift",
            "0 * shift",
        ),
        (
            "a leaky kink stays although a scale is negative",
            "leaky_rectifier_passes",
            "dead is None and (not bool(kink.any())) and bool((scale > 0).all())",
            "dead is None and (not bool(kink.any()))",
        ),
        (
            "slopes per channel lie along dimension 0",
            "_slope",
            "shape[1]",
            "shape[-1]",
        ),
        (
            "a leaky threshold moves twice",
            "leaky_rectifier_passes",
            "isinstance(module, ThreshLeakyReLU)",
            "False",
        ),
        (
            "it passes no concatenations",
            "BatchNormThenActivationThenLinear.check",
            "{'concat', 'activation'}",
            "{'activation'}",
        ),
    ),
    *_many(
        "plans",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py "
        "patterns/test_concat_bn.py patterns/test_concat_linear.py",
        (
            "other readers are overlooked",
            "_walk_backward",
            "others and (not duplicate)",
            "False",
        ),
        (
            "the model's output is no reader",
            "_forward",
            "raise RefusedError('the model returns it as it is')",
            "return None",
        ),
        (
            "two different affines on one value go unnoticed",
            "_walk_backward",
            "not _agree(wanted[node])",
            "False",
        ),
        (
            "only scales must agree",
            "_agree",
            "torch.equal(first.scale, other.scale) and torch.equal(first.shift, other.shift)",
            "torch.equal(first.scale, other.scale)",
        ),
        (
            "forward, a dimension of no fixed size goes unnoticed",
            "_walk_forward",
            "_newly_varying(step, incoming, outgoing)",
            "set()",
        ),
        (
            "backward, a dimension of no fixed size goes unnoticed",
            "_fixed_sizes",
            "loose = step.network.shapes.free_among(argument, affine.compress().varying())",
            "loose: set[int] = set()",
        ),
        (
            "every slice is blind",
            "_notices",
            "seen is None or not seen.is_identity",
            "False",
        ),
        (
            "dead channels are made constant beside the affine, not by it",
            "revive",
            "torch.where(dead, shift, -infinite)",
            "torch.where(dead, shift * 0, -infinite)",
        ),
        (
            "dead channels keep their shift when made constant",
            "revive",
            "torch.where(dead, torch.zeros_like(shift), shift)",
            "shift",
        ),
        (
            "the clamp of dead channels is forgotten",
            "_walk_forward",
            (
                "if clamp is not None:\n"
                "    plan.edits.append((anchor, clamp))\n"
                "    plan.passed[_CONSTANT] = label(network, anchor)"
            ),
            ("if clamp is not None:\n    plan.passed[_CONSTANT] = label(network, anchor)"),
        ),
        (
            "the kinds that a pattern may pass are ignored",
            "_within",
            "kind not in allowed and kind != _CONSTANT",
            "False",
        ),
    ),
    *_many(
        "concat_bn",
        "patterns/test_concat_bn.py",
        (
            "what stays is forgotten",
            "BatchNormOverConcat.check",
            "plan_backward(network, node, LINEAR_WAY | {'concat'})",
            "plan_backward(network, node, LINEAR_WAY | {'concat'}, stay=True)",
        ),
        (
            "it copies producers",
            "BatchNormOverConcat.check",
            "plan_backward(network, node, LINEAR_WAY | {'concat'})",
            "plan_backward(network, node, LINEAR_WAY | {'concat'}, duplicate=True)",
        ),
    ),
    *_many(
        "concat_linear",
        "patterns/test_concat_linear.py",
        (
            "it passes activations, too",
            "BranchThenConcatThenLinear.check",
            "{'concat'}",
            "{'concat', 'activation'}",
        ),
        (
            "it takes what has no concatenation",
            "BranchThenConcatThenLinear.check",
            "must_pass(plan, 'concat', 'no concatenation lies behind it')",
            "plan",
        ),
    ),
    *_many(
        "untangle",
        "patterns/test_untangle.py",
        (
            "it copies nothing",
            "Untangle.check",
            "plan_backward(network, node, LINEAR_WAY | {'concat'}, duplicate=True, stay=True)",
            "plan_backward(network, node, LINEAR_WAY | {'concat'}, stay=True)",
        ),
        (
            "it copies what holds nothing",
            "Untangle.check",
            "not plan.into and (not plan.merged)",
            "False",
        ),
        (
            "other readers read the copy",
            "_copy_shared_producers",
            "readers - set(plan.clones)",
            "list(node.users)",
        ),
        (
            "a copy reads the original of its inputs",
            "_copy_shared_producers",
            "copies[argument] if argument in copies and node in readers_of[argument] else argument",
            "argument",
        ),
        (
            "the original takes the affine",
            "commit",
            "edit.apply(network, copies.get(node, node))",
            "edit.apply(network, node)",
        ),
        (
            "a copy and its original are one module",
            "Network.duplicate",
            ("module = shell(original)\nname = f'{node.target}_{suffix}'"),
            ("module = original\nname = str(node.target)"),
        ),
    ),
    *_many(
        "split_concat",
        "patterns/test_split_concat.py",
        (
            "nothing may stay",
            "SplitOverConcat.check",
            "plan_backward(network, node, LINEAR_WAY | {'concat'}, stay=True)",
            "plan_backward(network, node, LINEAR_WAY | {'concat'})",
        ),
        (
            "it splits where nothing can be folded",
            "SplitOverConcat.check",
            "isinstance(plan, Plan) and (not plan.into) and (not plan.merged)",
            "False",
        ),
        (
            "what stays is forgotten",
            "_walk_backward",
            (
                "del plan.edits[edits:], plan.into[into:], plan.merged[merged:]\n"
                "plan.staying[node] = affine\n"
                "plan.path.append((node, frozenset(wanted[node])))\n"
                "continue"
            ),
            ("del plan.edits[edits:], plan.into[into:], plan.merged[merged:]\ncontinue"),
        ),
        (
            "what stays is looked at again",
            "_copy_shared_producers",
            "True",
            "False",
        ),
    ),
    *_many(
        "last_resort",
        "patterns/test_last_resort.py",
        (
            "the shift is forgotten",
            "as_linear_layer",
            "exact_parameter(shift, sample)",
            "exact_parameter(shift * 0, sample)",
        ),
        (
            "the channels are those of dimension 1",
            "as_linear_layer",
            "ChannelLinear(channels, dim)",
            "ChannelLinear(channels, 1)",
        ),
        (
            "every layer is one of images",
            "as_linear_layer",
            "dim == 1 and dims in (1, 2, 3)",
            "dims in (1, 2, 3)",
        ),
        (
            "affines that differ along two dimensions are taken",
            "ExplicitLinearLayer._dim",
            "len(varying) > 1",
            "False",
        ),
        (
            "free dimensions get weights",
            "ExplicitLinearLayer._dim",
            "d < len(shape) and d not in free",
            "d < len(shape)",
        ),
        (
            "what stays loses its shift",
            "keep_as_it_is",
            "None if affine.is_linear else keep_exact(affine.shift, dtype)",
            "None",
        ),
        (
            "what stays loses its scale",
            "keep_as_it_is",
            "None if bool((affine.scale == 1).all()) else keep_exact(affine.scale, dtype)",
            "None",
        ),
    ),
    *_many(
        "stacked_linear",
        "patterns/test_stacked_linear.py",
        (
            "the first bias is dropped",
            "StackedLinear.check",
            "behind_bias = through if behind_bias is None else behind_bias + through",
            "pass",
        ),
        (
            "the second bias is dropped",
            "StackedLinear.check",
            "through if behind_bias is None else behind_bias + through",
            "through",
        ),
        (
            "zero padding between is overlooked",
            "refusal",
            "has_zero_padding(second) and biased",
            "False",
        ),
        (
            "groups are overlooked",
            "refusal",
            "a.groups != 1 or b.groups != 1",
            "False",
        ),
        (
            "larger layers are made",
            "_if_larger",
            "merged > separate",
            "False",
        ),
        (
            "other readers are overlooked",
            "StackedLinear.check",
            ("if others:\n    return Refused(f'{names[0]} is also read by {label(network, others[0])}', names)"),
            ("if False:\n    return Refused(f'{names[0]} is also read by {label(network, others[0])}', names)"),
        ),
        (
            "a stride of a pointwise layer is overlooked",
            "_pointwise",
            "all((size == 1 for size in conv.kernel_size)) and all((step == 1 for step in conv.stride))",
            "all((size == 1 for size in conv.kernel_size))",
        ),
        (
            "the composition is transposed",
            "ProductKernel.add_to",
            "torch.einsum('oi...,ij->oj...', second, first.flatten(1))",
            "torch.einsum('oi...,ij->oj...', second.flip(1), first.flatten(1))",
        ),
    ),
    *_many(
        "parallel_linear",
        "patterns/test_parallel_linear.py",
        (
            "weights of the sum are forgotten",
            "ParallelLinear.check",
            "Added(large, w1, kernel, w2)",
            "Added(large, 1.0, kernel, 1.0)",
        ),
        (
            "factors are exchanged",
            "ParallelLinear.check",
            "Added(large, w1, kernel, w2)",
            "Added(large, w2, kernel, w1)",
        ),
        (
            "a piece of an affine's kernel starts over",
            "Diagonal.add_to",
            "self.scale[part]",
            "self.scale[:len(own)]",
        ),
        (
            "an affine's groups are counted within a piece",
            "Diagonal.add_to",
            "channels % self.shape[1]",
            "own % self.shape[1]",
        ),
        (
            "biases are not weighted",
            "ParallelLinear.check",
            "w * b",
            "b",
        ),
        (
            "the smaller kernel lies in the corner",
            "_placed",
            "[start, end]",
            "[0, start + end]",
        ),
        (
            "strides are overlooked",
            "_inside",
            "other.stride != layer.stride",
            "False",
        ),
        (
            "groups are overlooked",
            "_inside",
            "other.groups != layer.groups or other.weight.shape[:2] != layer.weight.shape[:2]",
            "False",
        ),
        (
            "dilations are overlooked",
            "_placed",
            "not pointwise and layer.dilation != other.dilation",
            "False",
        ),
        (
            "padding modes are overlooked",
            "_placed",
            "layer.padding_mode != other.padding_mode and (not (pointwise and (not any(other.padding))))",
            "False",
        ),
        (
            "groups of an affine's kernel are forgotten",
            "Diagonal.add_to",
            "channels % self.shape[1]",
            "channels * 0",
        ),
        (
            "other inputs are overlooked",
            "ParallelLinear.match",
            "left.args[0] is right.args[0]",
            "True",
        ),
        (
            "other readers are overlooked",
            "ParallelLinear.check",
            (
                "if others:\n"
                "    return Refused(f'{label(network, branch)} is also read by {label(network, "
                "others[0])}', names)"
            ),
            (
                "if False:\n"
                "    return Refused(f'{label(network, branch)} is also read by {label(network, "
                "others[0])}', names)"
            ),
        ),
        (
            "the identity is forgotten",
            "_inside",
            "found[0]",
            "0 * found[0]",
        ),
        (
            "what the layer reads goes with the sum",
            "ParallelLinear.rewrite",
            "plan.anchor is not plan.second.args[0]",
            "True",
        ),
    ),
    *_many(
        "forms",
        "forms/test_forms.py",
        (
            "the size is not checked",
            "PlainPooling.after",
            (
                "if journal.full:\n"
                "    return\n"
                "self._check_size(network, node, source, sizes)\n"
                "network.replace(node, _PLAIN[type(module)](windows, stride=windows))"
            ),
            ("if journal.full:\n    return\nnetwork.replace(node, _PLAIN[type(module)](windows, stride=windows))"),
        ),
        (
            "windows that overlap are taken",
            "PlainPooling._windows",
            "(not wanted or size % wanted for size, wanted in zip(sizes, outputs, strict=True))",
            "(not wanted for size, wanted in zip(sizes, outputs, strict=True))",
        ),
        (
            "rows and columns are swapped",
            "DenseAsConvolution._as_convolution",
            "shape[1:]",
            "shape[1:][::-1]",
        ),
        (
            "pending weights are forgotten",
            "DenseAsConvolution._as_convolution",
            "weights.touched",
            "False",
        ),
        (
            "a threshold stays flat",
            "DenseAsConvolution._push",
            "network.replace(reader, _reshaped(layer, shape))",
            "pass",
        ),
    ),
    *_many(
        "functions kept whole",
        "test_whole_functions.py",
        (
            "writes go unnoticed",
            "_writes",
            "[tensor._version for tensor in tensors] != before",
            "False",
        ),
        (
            "scripted functions are trusted",
            "_is_foreign",
            "isinstance(node.target, torch.jit.ScriptFunction)",
            "False",
        ),
        (
            "operators of one's own are trusted",
            "_is_foreign",
            "not str(node.target).startswith(('aten.', 'prims.', 'torchvision.'))",
            "False and str(node.target).startswith(('aten.', 'prims.', 'torchvision.'))",
        ),
        (
            "nothing may stay whole",
            "refuse_hidden_writes",
            "writes is not False",
            "True",
        ),
        (
            "they are not traced into",
            "opened_functions",
            "del wrapped[key]",
            "pass",
        ),
        (
            "writes into lists go unnoticed",
            "_written",
            "raise CaptureError(f'{operation.name}_ writes into several tensors at once', _path(node))",
            "str(f'{operation.name}_ writes into several tensors at once', _path(node))",
        ),
    ),
    *_many(
        "casts",
        "patterns/test_casts.py",
        (
            "every cast lets affines pass",
            "_keeps_places",
            (
                "if not _holds(after.dtype, before.dtype) or (back and (not _holds(before.dtype, "
                "after.dtype))):\n"
                "    raise RefusedError(f\"{step.label()} casts to {str(after.dtype).removeprefix('torch.')}\")"
            ),
            (
                "if back and (not _holds(before.dtype, after.dtype)):\n"
                "    raise RefusedError(f\"{step.label()} casts to {str(after.dtype).removeprefix('torch.')}\")"
            ),
        ),
        (
            "no cast lets affines pass",
            "_keeps_places",
            "not _holds(after.dtype, before.dtype)",
            "True",
        ),
        (
            "into a narrower precision",
            "_keeps_places",
            "not _holds(after.dtype, before.dtype) or (back and (not _holds(before.dtype, after.dtype)))",
            "not _holds(after.dtype, before.dtype) or False",
        ),
        (
            "narrow for wide",
            "_keeps_places",
            "_holds(after.dtype, before.dtype)",
            "_holds(before.dtype, after.dtype)",
        ),
        (
            "other numbers are the same",
            "operation_name",
            "None if reads_otherwise else name",
            "name",
        ),
    ),
    *_many(
        "memory",
        "test_normalize.py",
        (
            "strides are followed",
            "_Translation._call",
            "operation is not None and operation.row.reads_memory",
            "False",
        ),
    ),
    *_many(
        "idle reshapes",
        "test_tidy.py",
        (
            "whatever it came from",
            "remove_idle_reshapes",
            "source is not like or not isinstance(like, fx.Node)",
            "not isinstance(like, fx.Node)",
        ),
        (
            "nothing is idle",
            "remove_idle_reshapes",
            "network.rewire_readers(node, like)",
            "continue",
        ),
        (
            "any rearrangement keeps the order",
            "_is_reshape",
            "row.orderly",
            "row.moves",
        ),
    ),
    *_many(
        "a model's own tensors",
        "test_writes.py",
        (
            "writes are not stopped",
            "WriteGuard.__torch_dispatch__",
            "self._is_held(tensor)",
            "False",
        ),
        (
            "views have a memory of their own",
            "memory_of",
            "int(tensor.untyped_storage()._cdata)",
            "id(tensor)",
        ),
        (
            "arguments by name are overlooked",
            "_written",
            "argument.name in kwargs",
            "False",
        ),
        (
            "a second forward writes into the user's weights",
            "own_parameters",
            "unshare(twin)",
            "pass",
        ),
        (
            "what is made inside is not noted",
            "WriteGuard.__torch_dispatch__",
            "self._made[memory_of(made)] = made",
            "pass",
        ),
        (
            "buffers are shared",
            "eval_twin.keep",
            "tensor.detach().clone()",
            "tensor",
        ),
        (
            "parameters are not unshared",
            "unshare",
            "module._parameters[name] = own[id(held)]",
            "pass",
        ),
        (
            "layers may be exchanged",
            "attributes_as_they_were",
            "raise writes_its_state(where, path)",
            "pass",
        ),
        (
            "nobody is told of counters",
            "attributes_as_they_were",
            "notes.append",
            "str",
        ),
        (
            "state may come back",
            "_state_left_out",
            "name in names",
            "False",
        ),
        (
            "nobody is told of state",
            "_state_left_out",
            "tuple((left_out(name) for name in changed))",
            (
                "() and tuple((f'the forward also writes into {name}; the canonical model leaves that "
                "out' for name in changed))"
            ),
        ),
        (
            "views of parameters may be written",
            "functionalize",
            "(other for other in memory.nodes if other.op == 'get_attr')",
            "(other for other in [written] if other.op == 'get_attr')",
        ),
        (
            "what an embedding gives is what it writes",
            "functionalize",
            "operation is not None and operation.row.writes_if",
            "False",
        ),
        (
            "max_norm is Euclidean",
            "_bake_max_norm",
            "torch.linalg.vector_norm(exact, ord=module.norm_type, dim=1, keepdim=True)",
            "torch.linalg.vector_norm(exact, dim=1, keepdim=True)",
        ),
        (
            "every row is shortened",
            "_bake_max_norm",
            "norm > most",
            "norm > 0",
        ),
    ),
    *_many(
        "a model's own tensors",
        "test_writes.py vocabulary/test_resolve.py",
        (
            "max_norm writes nothing",
            "Operation.writes",
            "self.bound.get(self.row.writes_if[0]) is not None",
            "False",
        ),
    ),
    *_many(
        "operations",
        "vocabulary/test_corpus.py",
        (
            "a matrix is not transposed",
            "_turned",
            "matrix.exact.detach().T",
            "matrix.exact.detach().T.flip(0)",
        ),
    ),
    *_many(
        "the vocabulary",
        "vocabulary/test_resolve.py",
        (
            "a mask's conjunction is a write",
            "_OPERATORS",
            "'bitwise_and'",
            "'bitwise_and_'",
        ),
        (
            "__rsub__ keeps its order",
            "_of_magic",
            "Spelling(pure.name, pure.packet, swapped=True, renamed=pure.renamed)",
            "Spelling(pure.name, pure.packet, swapped=False, renamed=pure.renamed)",
        ),
        (
            "+= writes nothing",
            "_of_function",
            "True",
            "False",
        ),
        (
            "axis= is unknown",
            "_known",
            "NUMPY.get(given)",
            "None",
        ),
    ),
    *_many(
        "coordinates",
        "test_normalize.py",
        (
            "their affines are taken for the model's",
            "_Translation._built",
            "node in self.data",
            "True",
        ),
        (
            "nothing depends on the data",
            "_Translation._visit",
            "reads or node.op == 'placeholder'",
            "False and node.op == 'placeholder'",
        ),
    ),
    *_many(
        "pieces of a weight",
        "test_linear.py",
        (
            "the last piece is left out",
            "PendingWeights._chunks",
            "range(0, rows, step)",
            "range(0, rows - step, step)",
        ),
        (
            "groups are counted within a piece",
            "PendingWeights._groups_of",
            "torch.arange(part.start, part.stop, device=self.weight.device)",
            "torch.arange(part.stop - part.start, device=self.weight.device)",
        ),
        (
            "the response forgets the scale of the outputs",
            "PendingWeights.response_to",
            "response if self.out_scale is None else response * self.out_scale.reshape(-1)",
            "response or self.out_scale.reshape(-1)",
        ),
        (
            "weights may overflow",
            "PendingWeights.rounded_weight",
            "sums and (not math.isfinite(float(torch.stack(sums).sum())))",
            "False",
        ),
        (
            "a large sum is an overflow",
            "PendingWeights._refuse_overflow",
            "not known and (not bool(torch.isfinite(rounded).all()))",
            "not known",
        ),
        (
            "what was no number is an overflow",
            "PendingWeights._refuse_overflow",
            "isinstance(self.weight, Tensor)",
            "False",
        ),
        (
            "biases may overflow",
            "rounded",
            "not bool(torch.isfinite(result).all())",
            "False",
        ),
        (
            "a copy has weights",
            "PendingWeights.clone",
            "copy.baked",
            "_",
        ),
    ),
    *_many(
        "shapes",
        "test_shape_rules.py",
        (
            "a stride is forgotten",
            "_windows",
            "(size + 2 * p - d * (k - 1) - 1) // s + 1",
            "size + 2 * p - d * (k - 1) - 1 + 1",
        ),
        (
            "padding counts once",
            "_windows",
            "2 * p",
            "p",
        ),
        (
            "named padding is overlooked",
            "_convolution",
            "isinstance(module.padding, str)",
            "False",
        ),
        (
            "the largest part is the sum",
            "_concatenation",
            "shape[dim] += other.shape[dim]",
            "pass",
        ),
        (
            "other precisions are overlooked",
            "_elementwise",
            "isinstance(t, Tensor) and t.shape == first.shape and (t.dtype == first.dtype)",
            "isinstance(t, Tensor) and t.shape == first.shape",
        ),
        (
            "every size of a pooling's output is fixed",
            "fixed_dims",
            "{2 + i for i, size in enumerate(wanted) if size is not None}",
            "{2 + i for i, size in enumerate(wanted)}",
        ),
        (
            "a flattening has a fixed size",
            "fixed_dims",
            ("{1} if (module.start_dim, module.end_dim) == (1, -1) and behind and (behind <= of_input()) else set()"),
            "{1} if (module.start_dim, module.end_dim) == (1, -1) and behind else set()",
        ),
        (
            "a convolution's channels are its input's",
            "fixed_dims",
            "return {1}",
            "return {2}",
        ),
    ),
    *_many(
        "in place",
        "test_normalize.py",
        (
            "a write into a slice is lost",
            "functionalize",
            "_write_back(graph, base, written, node, order)",
            "None",
        ),
    ),
    *_many(
        "modules",
        "patterns/test_bn_linear.py",
        (
            "a pad of one side is none",
            "ChannelPad.forward",
            "all",
            "any",
        ),
    ),
    *_many(
        "modules",
        "test_nn.py",
        (
            "a pad is zero",
            "ChannelPad.forward",
            "torch.where(inside, F.pad(input, padding), self.value)",
            "F.pad(input, padding)",
        ),
        (
            "a threshold has no upper bound",
            "ThreshReLU.forward",
            "torch.clamp(input, self.lower, self.upper)",
            "torch.clamp(input, self.lower)",
        ),
        (
            "the leaky slopes are exchanged",
            "ThreshLeakyReLU.forward",
            "torch.where(distance > 0, self.right, self.left)",
            "torch.where(distance > 0, self.left, self.right)",
        ),
        (
            "a channel's layer always looks at dimension 1",
            "ChannelLinear.forward",
            "input.movedim(self.dim, 1)",
            "input",
        ),
        (
            "the weight of the first summand is forgotten",
            "Sum.forward",
            "inputs[0] if self.weights[0] == 1 else inputs[0] * self.weights[0]",
            "inputs[0]",
        ),
    ),
    *_many(
        "names, sizes, calls",
        "patterns/test_linear_bn.py patterns/test_bn_linear.py test_capture.py",
        (
            "no dimension is free",
            "Shapes.free_dims",
            "free = self._differing(node, shape, self.batch_variants)",
            ("return set()\nfree = set()"),
        ),
    ),
    *_many(
        "guards",
        "test_capture.py",
        (
            "sizes that were decided on are not guarded",
            "_Tracer.settle",
            "self._guard(node, value)",
            "pass",
        ),
    ),
    *_many(
        "hooks",
        "test_capture.py",
        (
            "forward hooks are dropped in silence",
            "refuse_what_a_trace_would_drop",
            (
                "(('forward pre-hook', module._forward_pre_hooks), ('forward hook', "
                "module._forward_hooks), ('backward hook', module._backward_hooks), ('backward "
                "pre-hook', module._backward_pre_hooks))"
            ),
            (
                "(('forward pre-hook', module._forward_pre_hooks), ('backward hook', "
                "module._backward_hooks), ('backward pre-hook', module._backward_pre_hooks))"
            ),
        ),
        (
            "backward hooks are dropped in silence",
            "refuse_what_a_trace_would_drop",
            (
                "(('forward pre-hook', module._forward_pre_hooks), ('forward hook', "
                "module._forward_hooks), ('backward hook', module._backward_hooks), ('backward "
                "pre-hook', module._backward_pre_hooks))"
            ),
            (
                "(('forward pre-hook', module._forward_pre_hooks), ('forward hook', "
                "module._forward_hooks), ('backward pre-hook', module._backward_pre_hooks))"
            ),
        ),
    ),
    *_many(
        "normalizing",
        "test_normalize.py",
        (
            "a difference is a sum",
            "subtract",
            "(1.0, -float(alpha))",
            "(1.0, float(alpha))",
        ),
        (
            "constant - x is x - constant",
            "subtract",
            "fixed_affine(ctx, other, -float(alpha), input)",
            "fixed_affine(ctx, other, float(alpha), input)",
        ),
        (
            "dropout that is always on is dropped",
            "dropout",
            "Same(input) if is_node(input) and (not train or p == 0) else None",
            "Same(input)",
        ),
    ),
    *_many(
        "building",
        "test_api.py test_normalize.py",
        (
            "two calls of a layer share one module",
            "Network.finished",
            "shell(original)",
            "original",
        ),
    ),
    *_many(
        "torchscript",
        "loading/test_torchscript.py",
        (
            "a trace in training mode passes",
            "_refuse_training",
            "name == 'batch_norm' and given['training'] is True and (given['running_mean'] is not None)",
            "name == 'batch_norm' and given['training'] is None",
        ),
        (
            "options are dropped",
            "_call",
            "not argument.has_default_value() or not _same(value, argument.default_value)",
            "not argument.has_default_value()",
        ),
        (
            "a size is that of the example",
            "_size",
            "tensor.size(dim)",
            "(_example(tensor) if isinstance(tensor, fx.Proxy) else tensor).size(dim)",
        ),
        (
            "the other branch is taken",
            "Program._results",
            "0 if known[node.input().unique()] else 1",
            "0 if known[node.input().unique()] is None else 1",
        ),
        (
            "functions are mixed up",
            "Program._function",
            "next(iter(node.inputs())).unique()",
            "0",
        ),
        (
            "casts are not looked for",
            "Oracle.__init__",
            "cast and self.dtype != torch.float64",
            "False and self.dtype != torch.float64",
        ),
    ),
    *_many(
        "sizes",
        "test_size_guards.py",
        (
            "one row is taken for granted",
            "guard_inputs",
            "rows and (free.keys() & released or not holds_for_one())",
            "False",
        ),
        (
            "fixed sizes are not checked",
            "guard_inputs",
            "other == i",
            "other == i < 0",
        ),
        (
            "no condition tells sizes apart",
            "_tells_apart",
            (
                "not all((condition.holds({**settled, **dict(zip(places, sizes, strict=True))}) for "
                "sizes in _some_of(choices)))"
            ),
            (
                "not bool and all((condition.holds({**settled, **dict(zip(places, sizes, strict=True))}) "
                "for sizes in _some_of(choices)))"
            ),
        ),
        (
            "every condition is kept",
            "_tells_apart",
            (
                "not all((condition.holds({**settled, **dict(zip(places, sizes, strict=True))}) for "
                "sizes in _some_of(choices)))"
            ),
            (
                "True or not all((condition.holds({**settled, **dict(zip(places, sizes, strict=True))}) "
                "for sizes in _some_of(choices)))"
            ),
        ),
        (
            "what cannot be read is passed over",
            "_telling",
            "return ([], set(free))",
            "pass",
        ),
        (
            "floors are quotients",
            "_OPERATORS",
            "operator.floordiv",
            "operator.truediv",
        ),
        (
            "conditions in a row are any",
            "_Condition.interpret.visit",
            "operator.and_",
            "operator.or_",
        ),
    ),
    *_many(
        "flags",
        "test_size_guards.py",
        (
            "any flag may be left out",
            "defaults",
            "type(own) is not type(values[i]) or not isinstance(own, PLAIN) or own != values[i]",
            "type(own) is not type(values[i]) or not isinstance(own, PLAIN)",
        ),
    ),
    *_many(
        "numbers",
        "capture/test_sizes_free.py",
        ("a size is fixed by int", "_keeping", "type(value) not in _PROXIES", "True"),
        ("a type is exchanged where it is compared", "_is_only_called", "all(uses)", "any(uses)"),
        ("a written number has no gradient", "_copied", "other.to(own.device, own.dtype)", "other.detach()"),
        ("more inputs than names fix all sizes", "_dynamic_shapes", "isinstance(value, tuple | list)", "False"),
    ),
    *_many(
        "questions",
        "test_questions.py",
        (
            "isinstance is asked of the proxy",
            "truthful_questions.truthful",
            "real(value, classes) or (known is not Unknown and real(known, classes))",
            "real(value, classes)",
        ),
        (
            "every attribute is there",
            "_Sized.__getattr__",
            "value is not Unknown and (not hasattr(value, name))",
            "False",
        ),
        (
            "tables are searched for proxies",
            "_Sized.__hash__",
            "hash(_plain(proxy))",
            "object.__hash__(self)",
        ),
        (
            "names are those of proxies",
            "_Sized._shown",
            "type(self) is SizedAttribute",
            "False",
        ),
        (
            "swallowed errors are believed",
            "_traced",
            "tracer.failure is not None",
            "False",
        ),
        (
            "the device is that of shapes",
            "_Tracer.decide",
            "on_device is not Unknown",
            "False",
        ),
    ),
    *_many(
        "values that are read",
        "capture/test_values_read.py",
        (
            "the example's value is baked in",
            "_Tracer.decide",
            "shapes.reads_data(node)",
            "False",
        ),
    ),
    *_many(
        "numbers of pieces",
        "capture/test_pieces.py",
        (
            "there are as many pieces as in the example",
            "_Tracer.count_of",
            "varies and node not in self.counted",
            "False",
        ),
    ),
    *_many(
        "sizes",
        "capture/test_sizes_free.py",
        (
            "lengths of sequences are channels",
            "other_sizes",
            (
                "[{(i, d) for i, d in axes if tensors[i].is_floating_point() and d >= 2}, {(i, 1) for i, "
                "t in enumerate(tensors) if t.is_floating_point() and t.ndim == 3}, *(alike[size] for "
                "size in sorted(alike, reverse=True))]"
            ),
            (
                "[{(i, d) for i, d in axes if tensors[i].is_floating_point() and d >= 2}, {(i, 1) for i, "
                "t in enumerate(tensors) if t.is_floating_point() and t.ndim == 3}]"
            ),
        ),
    ),
    *_many(
        "aliases",
        "capture/test_aliases.py",
        (
            "idle dropout makes a copy",
            "_IdleDropout.__torch_function__",
            "args[0]",
            "args[0].clone()",
        ),
    ),
    *_many(
        "torch.export",
        "test_capture.py",
        (
            "a tensor that is given twice is one input",
            "_export",
            "inputs.map(lambda tensor: tensor.detach().clone())",
            "inputs",
        ),
    ),
    *_many(
        "functionalize",
        "test_writes.py",
        (
            "statistics that are counted in may be read",
            "_leave_statistics",
            "any(not counts_in(user, other) for user in other.users)",
            "False",
        ),
    ),
    *_many(
        "conformance",
        "capture/test_conformance.py",
        (
            "differences are passed over",
            "_refuse_difference",
            "one is None or other is None or (not one.same_as(other))",
            "False",
        ),
        (
            "gradients of exported graphs are believed",
            "_check_gradients",
            "not alike(wanted, tracked.output)",
            "False",
        ),
        (
            "autocast is dropped",
            "EventRecorder._note",
            "autocast_is_on()",
            "False",
        ),
    ),
    *_many(
        "time limits",
        "capture/test_taken.py",
        (
            "a time limit is a failed trace",
            "cuts_in",
            (
                "def cuts_in(error: BaseException) -> bool:\n"
                '    """Whether an exception is the caller\'s own, which stops whatever runs: a time '
                "limit, or what a signal raised.\n"
                "\n"
                "    It says nothing about a model, and no other way is tried because of it.\n"
                '    """\n'
                "    if isinstance(error, TimeoutError):\n"
                "        return True\n"
                "    handlers = {getattr(signal.getsignal(number), '__code__', None) for number in "
                "signal.valid_signals()} - {None}\n"
                "    trace = error.__traceback__\n"
                "    while trace is not None and handlers:\n"
                "        if trace.tb_frame.f_code in handlers:\n"
                "            return True\n"
                "        trace = trace.tb_next\n"
                "    return False"
            ),
            (
                "def cuts_in(error: BaseException) -> bool:\n"
                '    """Whether an exception is the caller\'s own, which stops whatever runs: a time '
                "limit, or what a signal raised.\n"
                "\n"
                "    It says nothing about a model, and no other way is tried because of it.\n"
                '    """\n'
                "    handlers = {getattr(signal.getsignal(number), '__code__', None) for number in "
                "signal.valid_signals()} - {None}\n"
                "    trace = error.__traceback__\n"
                "    while trace is not None and handlers:\n"
                "        if trace.tb_frame.f_code in handlers:\n"
                "            return True\n"
                "        trace = trace.tb_next\n"
                "    return False"
            ),
        ),
        (
            "what a signal raises is a failed trace",
            "cuts_in",
            "trace.tb_frame.f_code in handlers",
            "False",
        ),
    ),
    *_many(
        "words",
        "capture/test_taken.py",
        (
            "how data was computed is told",
            "_Words._of_node",
            "depth > _DEEPEST or self._is_data(node)",
            "depth > _DEEPEST",
        ),
    ),
    *_many(
        "constants",
        "test_normalize.py",
        (
            "integers become float32",
            "_evaluate",
            (
                "with torch.no_grad(), in_float64():\n"
                "    exact = _run(node, lambda n: _as_exact(fixed[n].exact), None if module is None else "
                "_in_float64(module))"
            ),
            (
                "with torch.no_grad():\n"
                "    exact = _run(node, lambda n: _as_exact(fixed[n].exact), None if module is None else "
                "_in_float64(module))"
            ),
        ),
    ),
    *_many(
        "precision",
        "patterns/test_casts.py",
        (
            "all is rounded to the model's precision",
            "cast.convert",
            "tensor.rounding or own",
            "own",
        ),
    ),
    *_many(
        "shapes",
        "test_form.py",
        (
            "a view is one of memory",
            "Shapes._run",
            "isinstance(node.target, torch._ops.OpOverload) and _only_views(node)",
            "False",
        ),
    ),
    *_many(
        "linear",
        "test_linear.py patterns/test_parallel_linear.py",
        (
            "pieces share one memory",
            "_float64",
            "_pool.free.pop()",
            "_pool.free[-1]",
        ),
        (
            "pieces are added to what was there",
            "PendingWeights._piece",
            "piece.zero_()",
            "piece",
        ),
    ),
    *_many(
        "verdict",
        "patterns/test_casts.py verify/test_equivalence.py",
        (
            "a candidate excuses itself",
            "_MOST_SENSITIVE",
            "8.0",
            "1000000000.0",
        ),
        (
            "a jump fails",
            "_is_no_answer",
            "bool(beyond) and all(beyond)",
            "False",
        ),
        (
            "a jump excuses everything",
            "_is_no_answer",
            "d.error <= _JUMP_FACTOR * response",
            "True",
        ),
    ),
    *_many(
        "verdict",
        "verify/test_conditions.py",
        (
            "no odd sizes",
            "other_sizes",
            "size + (1 if axis % 2 else -1)",
            "size * 2",
        ),
        (
            "no pixels",
            "REGIMES",
            "(256 * _image(example, generator)).floor()",
            "_image(example, generator)",
        ),
        (
            "no other memory format",
            "channels_last",
            "torch.channels_last",
            "torch.contiguous_format",
        ),
        (
            "no NaN",
            "NONFINITE",
            "torch.nan",
            "2.0",
        ),
        (
            "dtypes are not compared",
            "usage_check",
            ("if odd:\n    return _failed(odd, dtypes[1])"),
            ("if False:\n    return _failed(odd, dtypes[1])"),
        ),
        (
            "writes are not seen",
            "usage_check",
            (
                "if written:\n"
                "    return _failed('the candidate writes into its input, the reference does not', dtypes[1])"
            ),
            ("if False:\n    return _failed('the candidate writes into its input, the reference does not', dtypes[1])"),
        ),
        (
            "a second call may differ",
            "usage_check",
            "measure.first_nonfinite(first) is None",
            "False",
        ),
    ),
    *_many(
        "files",
        "export/test_places.py",
        (
            "a link is replaced",
            "write_whole",
            "Path(os.path.realpath(path)) if path.is_symlink() else path",
            "path",
        ),
        (
            "a running writer's file is removed",
            "_remove_leftovers",
            "match is None or _is_running(int(match[1]))",
            "match is None",
        ),
        (
            "what was killed stays",
            "_remove_leftovers",
            "_remove(left)",
            "pass",
        ),
        (
            "inputs are guessed",
            "_inputs_for",
            "isinstance(seen, Inputs)",
            "False",
        ),
    ),
    *_many(
        "dtypes",
        "test_dtypes.py",
        (
            "a wider constant is narrowed",
            "_Translation._layer",
            "widened is not None",
            "False",
        ),
    ),
    *_many(
        "verdict",
        "verify/test_equivalence.py",
        (
            "weights alone are proof",
            "_verdict",
            "answered and (not failed)",
            "bool(checks) and (not failed)",
        ),
    ),
    *_many(
        "threads",
        "test_threads.py",
        (
            "everybody's warnings are ignored",
            "_Here.match",
            "self.thread == threading.get_ident()",
            "True",
        ),
        (
            "everybody's function is replaced",
            "_asking.function",
            "mine[-1] if mine else original",
            "next(iter(table.values()))[-1] if table else original",
        ),
        (
            "the generator is set back",
            "exporting",
            "hasattr(aot_autograd, 'preserve_rng_state')",
            "False",
        ),
        (
            "made again from rounded values",
            "_computed",
            (
                "for given, named in attempts:\n"
                "    with contextlib.suppress(TypeError, RuntimeError, ValueError, NotImplementedError):\n"
                "        made = func(*given, **named)\n"
                "        if isinstance(made, Tensor) and made.dtype == wide and (made.shape == result.shape):\n"
                "            return made"
            ),
            (
                "for given, named in attempts[:0]:\n"
                "    with contextlib.suppress(TypeError, RuntimeError, ValueError, NotImplementedError):\n"
                "        made = func(*given, **named)\n"
                "        if isinstance(made, Tensor) and made.dtype == wide and (made.shape == result.shape):\n"
                "            return made"
            ),
        ),
        (
            "integers are divided in float32",
            "_wide",
            "leaf.double",
            "leaf.float",
        ),
        (
            "the global generator is asked",
            "PrivateRandom.__torch_dispatch__",
            "generator is not None",
            "False",
        ),
        (
            "noise repeats",
            "Streams.on",
            "device not in self._generators",
            "True",
        ),
        (
            "another thread's weights are traced",
            "_Tracer.getattr",
            "self.at_rest or threading.get_ident() != self.thread",
            "self.at_rest",
        ),
    ),
    *_many(
        "extras",
        "test_extras.py",
        (
            "a name that nobody registered",
            "install_command",
            "not url",
            "True",
        ),
        (
            "an extra that does not help",
            "need",
            "sys.version_info < first",
            "False",
        ),
    ),
    *_many(
        "recognised normalisations",
        "test_recognise.py",
        (
            "any power will do",
            "_matched",
            "_power(_operation(network, factor)) != power",
            "_power(_operation(network, factor)) is None",
        ),
        (
            "the numerator may be anything",
            "_matched",
            "not _same_value(network, _uncast(network, numerator), source)",
            "False",
        ),
        (
            "a factor inside is overlooked",
            "_epsilon",
            "affine.scale.numel() != 1 or affine.shift.numel() != 1 or float(affine.scale) != 1.0",
            "affine.scale.numel() != 1 or affine.shift.numel() != 1",
        ),
        (
            "the weight on the numerator is lost",
            "_replace",
            "found.scaled is not None",
            "False",
        ),
        (
            "the precision inside is lost",
            "_replace",
            "None if found.inner == _dtype(network, found.source) else found.inner",
            "None",
        ),
    ),
    *_many(
        "onnx",
        "loading/test_onnx_corpus.py",
        (
            "negative axes are taken as they are",
            "unsqueeze",
            "(a % rank for a in numbers)",
            "numbers",
        ),
        (
            "borders change places",
            "pad",
            "[before, after]",
            "[after, before]",
        ),
        (
            "a size of 1 is a size",
            "expand",
            "[-1 if size == 1 and index >= new else size for index, size in enumerate(wanted)]",
            "wanted",
        ),
    ),
    *_many(
        "calls taken apart",
        "test_lowering.py",
        (
            "a size of the example is baked in",
            "_for_all_sizes",
            "found is not None and steps != found",
            "False",
        ),
        (
            "any decomposition will do",
            "_is_smooth",
            "sums or row.moves or row.gathers or row.splits or row.idle",
            "True",
        ),
        (
            "a scale of lerp is dropped",
            "_lerp",
            "input + weight * (end - input)",
            "input + (end - input)",
        ),
        (
            "what is read twice takes what one place needs",
            "_same_twice",
            "needed is not None and argument in kept",
            "False",
        ),
        (
            "arguments in one tuple are one argument",
            "_dynamic_shapes",
            "inspect.signature(root.forward).bind(*inputs.args, **inputs.kwargs).arguments",
            "dict(enumerate(inputs.args))",
        ),
        (
            "copies of views have no row",
            "_copies_a_view",
            "packet is not None and any(has_tag(getattr(packet, one), 'view_copy') for one in packet.overloads())",
            "False",
        ),
    ),
    *_many(
        "recognised activations",
        "test_recognise_activations.py",
        (
            "what comes close is the same",
            "_AGREES",
            "1e-13",
            "0.001",
        ),
        (
            "values that are read inside go",
            "_functions_of",
            ("len(inside) > 1 and all((user in inside for node in inside if node is not end for user in node.users))"),
            ("len(inside) > 1 or all((user in inside for node in inside if node is not end for user in node.users))"),
        ),
        (
            "the shift is overlooked",
            "_named.function",
            "values[node.all_input_nodes[0]] * scale + shift",
            "values[node.all_input_nodes[0]] * scale",
        ),
    ),
    *_many(
        "certificate",
        "verify/test_certificate.py",
        (
            "one size is taken for all",
            "_Walk._sizes_hold",
            "dim in free and (dim, sizes[dim]) not in held",
            "False",
        ),
        (
            "windows of any size are those of an adaptive pooling",
            "same_windows",
            "good and all(_wide(getattr(g, name, want), dims) == want for name, want in wanted.items())",
            "good",
        ),
    ),
)

"""What torch's schemas do not say of its operators: one row each.

Views, writes, pointwise operators, reductions and random numbers are torch's own knowledge (`vocabulary.schemas`).
What is linear in which argument, what moves elements only, what asks for a size, and the like, stands here and nowhere
else. An operator without a row is nothing special: a call that no pattern looks into.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What is known of one operator.

    Attributes
    ----------
    asks : bool
        It asks for sizes, dtypes or devices, and looks at no value.
    moves : bool
        The elements of the result are those of the first argument.
    orderly : bool
        Besides, every element once and in their order (a reshape).
    casts : bool
        It may change the dtype (or device), and leaves every element where it is.
    stays : bool
        It leaves every element where it is (a cast, ``detach``).
    views : bool
        Besides, only where the memory allows it (``x.view``).
    grows : bool
        It repeats elements to the size that is asked for, so that it does nothing where the size is there already.
    splits : bool
        It gives pieces of its first argument.
    along : int, optional
        The dimension that it splits, where its name says it.
    gathers : bool
        The elements of the result are those of several arguments.
    like : str
        An argument of which only size, dtype and device are looked at (``x.view_as(other)``, ``x.new_zeros(2)``).
    idle : bool
        In a graph without writes it does nothing.
    hands_back : bool
        It may hand back its argument, or a view of it, though its schema does not say so.
    reads_memory : bool
        What it gives depends on how a tensor lies in memory.
    linear_in : tuple of str
        Arguments in each of which, the others fixed, the result is linear.
    product : bool
        It multiplies two values of the network, element by element or as matrices.
    averages : bool
        Every element of the result is an average of the first argument's, with weights that sum to one.
    resizes : bool
        Besides, over a neighbourhood, to another image size.
    pads : bool
        It puts something around its first argument.
    normalises : bool
        It divides by what it computes of its input.
    statistics : bool
        It normalises by statistics: by running ones, if it is told so.
    scales : bool
        It may scale and shift every channel by fixed numbers: where they are, it holds an affine (C1).
    tells : bool
        It gives conditions, whatever it is given.
    drops : bool
        It is dropout of some kind, and does nothing unless it trains.
    asserts : bool
        It checks something and gives nothing.
    attends : bool
        It is attention.
    writes_if : tuple of str
        An argument which, where it is given, makes the operator write, and the argument that it then writes.
    whole : bool
        It is never taken apart: rules and patterns know it by name.
    """

    asks: bool = False
    moves: bool = False
    orderly: bool = False
    casts: bool = False
    stays: bool = False
    views: bool = False
    grows: bool = False
    splits: bool = False
    along: int | None = None
    gathers: bool = False
    like: str = ""
    idle: bool = False
    hands_back: bool = False
    reads_memory: bool = False
    linear_in: tuple[str, ...] = ()
    product: bool = False
    averages: bool = False
    resizes: bool = False
    pads: bool = False
    normalises: bool = False
    statistics: bool = False
    scales: bool = False
    tells: bool = False
    drops: bool = False
    asserts: bool = False
    attends: bool = False
    writes_if: tuple[str, str] | tuple[()] = ()
    whole: bool = False


NOTHING = Row()
_ASKS = Row(asks=True)
_MOVES = Row(moves=True)
_ORDERLY = Row(moves=True, orderly=True)
_CASTS = Row(moves=True, casts=True, stays=True)
_GROWS = Row(moves=True, grows=True)
_SPLITS = Row(splits=True)
_ALIKE = Row(like="input")
_LINEAR = Row(linear_in=("input",))
_PRODUCT = Row(linear_in=("input", "other"), product=True)
_LAYER = Row(linear_in=("input",), whole=True)
_AVERAGE = Row(averages=True, linear_in=("input",), whole=True)
_RESIZES = Row(averages=True, resizes=True, linear_in=("input",), whole=True)
_DROPS = Row(drops=True, hands_back=True)
_TELLS = Row(tells=True)
_IDLE = Row(idle=True)
_ASSERTS = Row(asserts=True)
_HANDS_BACK = Row(hands_back=True)
_BATCH_NORM = Row(statistics=True, scales=True, whole=True)
_NORM = Row(normalises=True, scales=True, whole=True)
_NORMALISES = Row(normalises=True, whole=True)

ROWS: dict[str, Row] = {
    # ------------------------------------------------------------------------------- sizes, dtypes, devices
    "size": _ASKS,
    "shape": _ASKS,
    "dim": _ASKS,
    "ndim": _ASKS,
    "numel": _ASKS,
    "len": _ASKS,
    "stride": _ASKS,
    "dtype": _ASKS,
    "device": _ASKS,
    "layout": _ASKS,
    "itemsize": _ASKS,
    "element_size": _ASKS,
    "nbytes": _ASKS,
    "get_device": _ASKS,
    "requires_grad": _ASKS,
    "is_leaf": _ASKS,
    "is_cuda": _ASKS,
    "is_cpu": _ASKS,
    "is_mps": _ASKS,
    "is_xpu": _ASKS,
    "is_meta": _ASKS,
    "is_sparse": _ASKS,
    "is_quantized": _ASKS,
    "is_nested": _ASKS,
    "is_mkldnn": _ASKS,
    "is_floating_point": _ASKS,
    "is_complex": _ASKS,
    "is_signed": _ASKS,
    "is_contiguous": _ASKS,
    "is_same_size": Row(asks=True, like="other"),
    "is_tensor": _ASKS,
    "result_type": _ASKS,
    "can_cast": _ASKS,
    "promote_types": _ASKS,
    "finfo": _ASKS,
    "iinfo": _ASKS,
    "sym_size": _ASKS,
    "sym_numel": _ASKS,
    "sym_stride": _ASKS,
    "sym_int": _ASKS,
    "sym_float": _ASKS,
    "sym_max": _ASKS,
    "sym_min": _ASKS,
    "sym_not": _ASKS,
    "sym_sum": _ASKS,
    "sym_ite": _ASKS,
    "sym_sqrt": _ASKS,
    # ------------------------------------------------------------------------- elements elsewhere, unchanged
    "view": Row(moves=True, orderly=True, views=True),
    "reshape": _ORDERLY,
    "_unsafe_view": Row(moves=True, orderly=True, views=True),
    "flatten": _ORDERLY,
    "unflatten": _ORDERLY,
    "squeeze": _ORDERLY,
    "squeeze_copy": _ORDERLY,
    "unsqueeze": _ORDERLY,
    "ravel": _ORDERLY,
    "view_as": Row(moves=True, orderly=True, views=True, like="other"),
    "reshape_as": Row(moves=True, orderly=True, like="other"),
    "atleast_1d": Row(hands_back=True),
    "atleast_2d": Row(hands_back=True),
    "atleast_3d": Row(hands_back=True),
    "permute": _MOVES,
    "transpose": _MOVES,
    "t": _MOVES,
    "movedim": _MOVES,
    "numpy_T": _MOVES,
    "matrix_H": NOTHING,
    "adjoint": NOTHING,
    "mT": _MOVES,
    "expand": _GROWS,
    "expand_as": Row(moves=True, grows=True, like="other"),
    "broadcast_to": _GROWS,
    "repeat": _GROWS,
    "tile": _GROWS,
    "repeat_interleave": _MOVES,
    "getitem": Row(moves=True, hands_back=True),
    "select": _MOVES,
    "narrow": _MOVES,
    "slice": _MOVES,
    "index_select": _MOVES,
    "flip": _MOVES,
    "fliplr": _MOVES,
    "flipud": _MOVES,
    "roll": _MOVES,
    "rot90": _MOVES,
    "diagonal": _MOVES,
    "unfold": _MOVES,
    "unbind": _SPLITS,
    "chunk": _SPLITS,
    "split": _SPLITS,
    "split_with_sizes": _SPLITS,
    "tensor_split": _SPLITS,
    "hsplit": Row(splits=True, along=1),
    "vsplit": Row(splits=True, along=0),
    "dsplit": Row(splits=True, along=2),
    "unsafe_chunk": _SPLITS,
    "unsafe_split": _SPLITS,
    "unsafe_split_with_sizes": _SPLITS,
    "pixel_shuffle": Row(moves=True, whole=True),
    "pixel_unshuffle": Row(moves=True, whole=True),
    "channel_shuffle": Row(moves=True, hands_back=True, whole=True),
    "native_channel_shuffle": Row(moves=True, whole=True),
    # ------------------------------------------------------------------------------- elements where they are
    "to": _CASTS,
    "_to_copy": _CASTS,
    "type": _CASTS,
    "type_as": Row(moves=True, casts=True, stays=True, like="other", hands_back=True),
    "detach": Row(moves=True, stays=True),
    "clone": _IDLE,
    "contiguous": _IDLE,
    "alias": _IDLE,
    "detach_copy": _IDLE,
    "alias_copy": _IDLE,
    "lift_fresh": _IDLE,
    "lift_fresh_copy": _IDLE,
    "positive": Row(idle=True, hands_back=True),
    "real": NOTHING,
    "conj": NOTHING,
    "resolve_conj": _HANDS_BACK,
    "resolve_neg": _HANDS_BACK,
    "conj_physical": _HANDS_BACK,
    # ---------------------------------------------------------------------------- made like another tensor
    "zeros_like": _ALIKE,
    "ones_like": _ALIKE,
    "full_like": _ALIKE,
    "empty_like": _ALIKE,
    "rand_like": _ALIKE,
    "randn_like": _ALIKE,
    "new_zeros": _ALIKE,
    "new_ones": _ALIKE,
    "new_full": _ALIKE,
    "new_empty": _ALIKE,
    "new_tensor": _ALIKE,
    # ------------------------------------------------------------------------------------ memory, by strides
    "as_strided": Row(reads_memory=True),
    "as_strided_copy": Row(reads_memory=True),
    "as_strided_scatter": Row(reads_memory=True),
    "storage_offset": Row(reads_memory=True),
    "set": Row(reads_memory=True),
    "data_ptr": Row(reads_memory=True),
    # --------------------------------------------------------------------------------------------- arithmetic
    "add": Row(hands_back=False),
    "sub": NOTHING,
    "rsub": NOTHING,
    "neg": _LINEAR,
    "mul": _PRODUCT,
    "div": _LINEAR,
    "matmul": _PRODUCT,
    "mm": Row(linear_in=("input", "other"), product=True),
    "bmm": Row(linear_in=("input", "other"), product=True),
    "mv": Row(linear_in=("input", "other"), product=True),
    "dot": Row(linear_in=("input", "other"), product=True),
    "addmm": NOTHING,
    "baddbmm": NOTHING,
    "addmv": NOTHING,
    "addbmm": NOTHING,
    "einsum": Row(hands_back=True),
    "cumsum": _LINEAR,
    "trace": _LINEAR,
    "sum": Row(linear_in=("input",), whole=True),
    "mean": Row(linear_in=("input",), averages=True, whole=True),
    "cat": Row(gathers=True, whole=True),
    "stack": Row(gathers=True),
    # --------------------------------------------------------------------------------------------- conditions
    "eq": _TELLS,
    "ne": _TELLS,
    "lt": _TELLS,
    "le": _TELLS,
    "gt": _TELLS,
    "ge": _TELLS,
    "logical_and": _TELLS,
    "logical_or": _TELLS,
    "logical_xor": _TELLS,
    "logical_not": _TELLS,
    # ----------------------------------------------------------------------------------------- linear layers
    "linear": Row(linear_in=("input", "weight"), whole=True),
    "conv1d": _LAYER,
    "conv2d": _LAYER,
    "conv3d": _LAYER,
    "conv_transpose1d": _LAYER,
    "conv_transpose2d": _LAYER,
    "conv_transpose3d": _LAYER,
    "convolution": _LAYER,
    "_convolution": _LAYER,
    "bilinear": Row(whole=True),
    "embedding": Row(whole=True, writes_if=("max_norm", "weight")),
    "embedding_bag": Row(whole=True, writes_if=("max_norm", "weight")),
    "embedding_renorm_": Row(whole=True),
    # ---------------------------------------------------------------------------------------- normalisations
    "batch_norm": _BATCH_NORM,
    "native_batch_norm": _BATCH_NORM,
    "_native_batch_norm_legit": _BATCH_NORM,
    "_native_batch_norm_legit_no_training": _BATCH_NORM,
    "_batch_norm_impl_index": _BATCH_NORM,
    "_batch_norm_no_update": _BATCH_NORM,
    "cudnn_batch_norm": _BATCH_NORM,
    "batch_norm_elemt": _BATCH_NORM,
    "instance_norm": Row(statistics=True, normalises=True, scales=True, whole=True),
    "layer_norm": _NORM,
    "native_layer_norm": _NORM,
    "group_norm": _NORM,
    "native_group_norm": _NORM,
    "rms_norm": _NORM,
    "_fused_rms_norm": _NORM,
    "local_response_norm": _NORMALISES,
    "normalize": _NORMALISES,
    "softmax": _NORMALISES,
    "_softmax": _NORMALISES,
    "log_softmax": _NORMALISES,
    "_log_softmax": _NORMALISES,
    "softmin": _NORMALISES,
    "gumbel_softmax": _NORMALISES,
    "_safe_softmax": _NORMALISES,
    # ------------------------------------------------------------------------------ pooling, resizing, padding
    "avg_pool1d": _AVERAGE,
    "avg_pool2d": _AVERAGE,
    "avg_pool3d": _AVERAGE,
    "adaptive_avg_pool1d": _AVERAGE,
    "adaptive_avg_pool2d": _AVERAGE,
    "adaptive_avg_pool3d": _AVERAGE,
    "_adaptive_avg_pool2d": _AVERAGE,
    "_adaptive_avg_pool3d": _AVERAGE,
    "interpolate": _RESIZES,
    "upsample": _RESIZES,
    "upsample_nearest1d": _RESIZES,
    "upsample_nearest2d": _RESIZES,
    "upsample_nearest3d": _RESIZES,
    "_upsample_nearest_exact1d": _RESIZES,
    "_upsample_nearest_exact2d": _RESIZES,
    "_upsample_nearest_exact3d": _RESIZES,
    "upsample_linear1d": _RESIZES,
    "upsample_bilinear2d": _RESIZES,
    "upsample_trilinear3d": _RESIZES,
    "upsample_bicubic2d": _RESIZES,
    "_upsample_bilinear2d_aa": _RESIZES,
    "_upsample_bicubic2d_aa": _RESIZES,
    "pad": Row(pads=True, whole=True),
    "constant_pad_nd": Row(pads=True, whole=True),
    "max_pool1d": Row(whole=True),
    "max_pool2d": Row(whole=True),
    "max_pool3d": Row(whole=True),
    # --------------------------------------------------------------------------------- nothing in evaluation
    "dropout": _DROPS,
    "dropout1d": _DROPS,
    "dropout2d": _DROPS,
    "dropout3d": _DROPS,
    "alpha_dropout": _DROPS,
    "feature_dropout": _DROPS,
    "feature_alpha_dropout": _DROPS,
    "stochastic_depth": _DROPS,
    "drop_path": _DROPS,
    "native_dropout": Row(drops=True),
    # ----------------------------------------------------------------------------------------------- attention
    "scaled_dot_product_attention": Row(attends=True, whole=True),
    "multi_head_attention_forward": Row(attends=True, whole=True),
    "_scaled_dot_product_flash_attention_for_cpu": Row(attends=True, whole=True),
    # ------------------------------------------------------------------------------------------ assertions
    "_assert": _ASSERTS,
    "_assert_async": _ASSERTS,
    "_assert_scalar": _ASSERTS,
    "_assert_tensor_metadata": _ASSERTS,
    "sym_constrain_range": _ASSERTS,
    "sym_constrain_range_for_size": _ASSERTS,
    # ------------------------------------------------------------------------------ may hand back what they get
    "broadcast_tensors": _HANDS_BACK,
    "meshgrid": _HANDS_BACK,
}

# Other words for an operator.
ALIASES: dict[str, str] = {
    "absolute": "abs",
    "arccos": "acos",
    "arccosh": "acosh",
    "arcsin": "asin",
    "arcsinh": "asinh",
    "arctan": "atan",
    "arctan2": "atan2",
    "arctanh": "atanh",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "clip": "clamp",
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
    "fix": "trunc",
    "concat": "cat",
    "concatenate": "cat",
    "row_stack": "vstack",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "moveaxis": "movedim",
    "linalg_matmul": "matmul",
    "special_expit": "sigmoid",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "ger": "outer",
    "inverse": "linalg_inv",
    "det": "linalg_det",
    "nelement": "numel",
    "ndimension": "dim",
    "permute_copy": "permute",
    "logsigmoid": "log_sigmoid",
    "_prelu_kernel": "prelu",
    "_reshape_alias": "reshape",
    "_unsafe_index": "index",
}

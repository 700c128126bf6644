"""What torch's schemas do not say of its operators: one row each.

Views, writes, pointwise operators, reductions and random numbers are torch's own knowledge (`vocabulary.schemas`).
What is linear in which argument, what moves elements only, what asks for a size, and the like, stands here and nowhere
else. An operator without a row is nothing special: a call that no pattern looks into.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an operation does, as far as rules go."""

    LINEAR = "a linear layer"
    ACTIVATION = "element by element"
    THRESHOLD = "a threshold per channel"
    BATCH_NORM = "a normalisation by fixed statistics"
    SUM = "a sum of its inputs"
    AVERAGE = "linear, without weights of its own"
    GATE = "a product, element by element"
    PRODUCT = "a product of matrices"
    SOFTMAX = "softmax"
    NORMALISATION = "a normalisation by its own input"
    SCALE = "a product with numbers"
    OFFSET = "a constant that is added or multiplied"
    COPY = "copies of its inputs, or constants"
    CLOSED = "attention in one piece"
    SOURCE = "a constant, or what depends on sizes alone"
    DISCRETE = "whole numbers or conditions"
    UNKNOWN = "no rule is known"


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
    kind : Kind, optional
        What a call of it is to a rule of relevance; none where no rule is known.
    chooses : bool
        Which elements it hands on depends on what they are: maxima, sorting.
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
    kind: Kind | None = None
    chooses: bool = False


NOTHING = Row()
_ASKS = Row(asks=True, kind=Kind.SOURCE)
_COPIES = Row(kind=Kind.COPY)
_CHOOSES = Row(chooses=True, kind=Kind.COPY)
_POOLS = Row(chooses=True, whole=True, kind=Kind.COPY)
_MOVES = Row(moves=True, kind=Kind.COPY)
_ORDERLY = Row(moves=True, orderly=True, kind=Kind.COPY)
_CASTS = Row(moves=True, casts=True, stays=True, kind=Kind.COPY)
_GROWS = Row(moves=True, grows=True, kind=Kind.COPY)
_SPLITS = Row(splits=True, kind=Kind.COPY)
_ALIKE = Row(like="input", kind=Kind.SOURCE)
_SOURCE = Row(kind=Kind.SOURCE)
_SUMS = Row(linear_in=("input",), kind=Kind.AVERAGE)
_SCALES = Row(linear_in=("input",), kind=Kind.SCALE)
_PRODUCT = Row(linear_in=("input", "other"), product=True, kind=Kind.PRODUCT)
_LAYER = Row(linear_in=("input",), whole=True, kind=Kind.PRODUCT)
_AVERAGE = Row(averages=True, linear_in=("input",), whole=True, kind=Kind.AVERAGE)
_RESIZES = Row(averages=True, resizes=True, linear_in=("input",), whole=True, kind=Kind.AVERAGE)
_DROPS = Row(drops=True, hands_back=True)
_TELLS = Row(tells=True, kind=Kind.DISCRETE)
_DISCRETE = Row(kind=Kind.DISCRETE)
_IDLE = Row(idle=True, kind=Kind.COPY)
_ASSERTS = Row(asserts=True)
_HANDS_BACK = Row(hands_back=True, kind=Kind.COPY)
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
    "view": Row(moves=True, orderly=True, views=True, kind=Kind.COPY),
    "reshape": _ORDERLY,
    "_unsafe_view": Row(moves=True, orderly=True, views=True, kind=Kind.COPY),
    "flatten": _ORDERLY,
    "unflatten": _ORDERLY,
    "squeeze": _ORDERLY,
    "unsqueeze": _ORDERLY,
    "ravel": _ORDERLY,
    "view_as": Row(moves=True, orderly=True, views=True, like="other", kind=Kind.COPY),
    "reshape_as": Row(moves=True, orderly=True, like="other", kind=Kind.COPY),
    "atleast_1d": _HANDS_BACK,
    "atleast_2d": _HANDS_BACK,
    "atleast_3d": _HANDS_BACK,
    "permute": _MOVES,
    "transpose": _MOVES,
    "t": _MOVES,
    "movedim": _MOVES,
    "numpy_T": _MOVES,
    "matrix_H": _COPIES,
    "adjoint": _COPIES,
    "mT": _MOVES,
    "expand": _GROWS,
    "expand_as": Row(moves=True, grows=True, like="other", kind=Kind.COPY),
    "broadcast_to": _GROWS,
    "repeat": _GROWS,
    "tile": _GROWS,
    "repeat_interleave": _MOVES,
    "getitem": Row(moves=True, hands_back=True, kind=Kind.COPY),
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
    "hsplit": Row(splits=True, along=1, kind=Kind.COPY),
    "vsplit": Row(splits=True, along=0, kind=Kind.COPY),
    "dsplit": Row(splits=True, along=2, kind=Kind.COPY),
    "unsafe_chunk": _SPLITS,
    "unsafe_split": _SPLITS,
    "unsafe_split_with_sizes": _SPLITS,
    "pixel_shuffle": Row(moves=True, whole=True, kind=Kind.COPY),
    "pixel_unshuffle": Row(moves=True, whole=True, kind=Kind.COPY),
    "channel_shuffle": Row(moves=True, hands_back=True, whole=True, kind=Kind.COPY),
    "native_channel_shuffle": Row(moves=True, whole=True, kind=Kind.COPY),
    # ------------------------------------------------------------------------------- elements where they are
    "to": _CASTS,
    "_to_copy": _CASTS,
    "type": _CASTS,
    "type_as": Row(moves=True, casts=True, stays=True, like="other", hands_back=True, kind=Kind.COPY),
    "detach": Row(moves=True, stays=True),
    "clone": _IDLE,
    "contiguous": _IDLE,
    "alias": _IDLE,
    "detach_copy": _IDLE,
    "lift_fresh": _IDLE,
    "lift_fresh_copy": Row(idle=True, kind=Kind.SOURCE),
    "positive": Row(idle=True, hands_back=True, kind=Kind.COPY),
    "real": _COPIES,
    "conj": _COPIES,
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
    "add": Row(kind=Kind.AVERAGE),
    "sub": Row(kind=Kind.AVERAGE),
    "rsub": Row(kind=Kind.AVERAGE),
    "neg": _SCALES,
    "mul": Row(linear_in=("input", "other"), product=True, kind=Kind.SCALE),
    "div": _SCALES,
    "matmul": _PRODUCT,
    "mm": _PRODUCT,
    "bmm": _PRODUCT,
    "mv": _PRODUCT,
    "dot": _PRODUCT,
    "einsum": Row(hands_back=True),
    "cumsum": _SUMS,
    "trace": _SUMS,
    "sum": Row(linear_in=("input",), whole=True, kind=Kind.AVERAGE),
    "mean": Row(linear_in=("input",), averages=True, whole=True, kind=Kind.AVERAGE),
    "cat": Row(gathers=True, whole=True, kind=Kind.COPY),
    "stack": Row(gathers=True, kind=Kind.COPY),
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
    "linear": Row(linear_in=("input", "weight"), whole=True, kind=Kind.PRODUCT),
    "conv1d": _LAYER,
    "conv2d": _LAYER,
    "conv3d": _LAYER,
    "conv_transpose1d": _LAYER,
    "conv_transpose2d": _LAYER,
    "conv_transpose3d": _LAYER,
    "convolution": _LAYER,
    "_convolution": _LAYER,
    "bilinear": Row(whole=True),
    "embedding": Row(whole=True, writes_if=("max_norm", "weight"), kind=Kind.COPY),
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
    "normalize": Row(normalises=True, whole=True, kind=Kind.NORMALISATION),
    "softmax": Row(normalises=True, whole=True, kind=Kind.SOFTMAX),
    "_softmax": Row(normalises=True, whole=True, kind=Kind.SOFTMAX),
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
    "pad": Row(pads=True, whole=True, kind=Kind.COPY),
    "constant_pad_nd": Row(pads=True, whole=True, kind=Kind.COPY),
    "max_pool1d": _POOLS,
    "max_pool2d": _POOLS,
    "max_pool3d": _POOLS,
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
    # ------------------------------------------------------------------ elements of several tensors, or by an index
    "block_diag": _COPIES,
    "column_stack": _COPIES,
    "diag": _COPIES,
    "diag_embed": _COPIES,
    "diagonal_scatter": _COPIES,
    "dstack": _COPIES,
    "gather": _COPIES,
    "hstack": _COPIES,
    "im2col": _COPIES,
    "index": _COPIES,
    "index_copy": _COPIES,
    "index_fill": _COPIES,
    "indices": _COPIES,
    "masked_fill": _COPIES,
    "masked_scatter": _COPIES,
    "masked_select": _COPIES,
    "narrow_copy": _COPIES,
    "reflection_pad1d": _COPIES,
    "reflection_pad2d": _COPIES,
    "reflection_pad3d": _COPIES,
    "replication_pad1d": _COPIES,
    "replication_pad2d": _COPIES,
    "replication_pad3d": _COPIES,
    "select_scatter": _COPIES,
    "slice_scatter": _COPIES,
    "take": _COPIES,
    "take_along_dim": _COPIES,
    "tril": _COPIES,
    "triu": _COPIES,
    "values": _COPIES,
    "vstack": _COPIES,
    "where": _COPIES,
    # ----------------------------------------------------------------------------- which element, the input decides
    "adaptive_max_pool1d": _CHOOSES,
    "adaptive_max_pool2d": _CHOOSES,
    "adaptive_max_pool3d": _CHOOSES,
    "amax": _CHOOSES,
    "amin": _CHOOSES,
    "aminmax": _CHOOSES,
    "cummax": _CHOOSES,
    "cummin": _CHOOSES,
    "fmax": _CHOOSES,
    "fmin": _CHOOSES,
    "fractional_max_pool2d": _CHOOSES,
    "fractional_max_pool3d": _CHOOSES,
    "kthvalue": _CHOOSES,
    "max": _CHOOSES,
    "max_pool1d_with_indices": _CHOOSES,
    "max_pool2d_with_indices": _CHOOSES,
    "max_pool3d_with_indices": _CHOOSES,
    "maximum": _CHOOSES,
    "median": _CHOOSES,
    "min": _CHOOSES,
    "minimum": _CHOOSES,
    "msort": _CHOOSES,
    "nanmedian": _CHOOSES,
    "sort": _CHOOSES,
    "topk": _CHOOSES,
    # --------------------------------------------------------------------------------------------------------- sums
    "col2im": Row(kind=Kind.AVERAGE),
    "diff": Row(kind=Kind.AVERAGE),
    "nanmean": Row(kind=Kind.AVERAGE),
    "nansum": Row(kind=Kind.AVERAGE),
    "sum_to_size": Row(kind=Kind.AVERAGE),
    "upsample_bilinear": Row(kind=Kind.AVERAGE),
    "upsample_nearest": Row(kind=Kind.AVERAGE),
    # ----------------------------------------------------------------------------------------------------- products
    "inner": Row(kind=Kind.PRODUCT),
    "kron": Row(kind=Kind.PRODUCT),
    "linalg_vecdot": Row(kind=Kind.PRODUCT),
    "outer": Row(kind=Kind.PRODUCT),
    "tensordot": Row(kind=Kind.PRODUCT),
    # ---------------------------------------------------------------------------------------------- made of nothing
    "arange": _SOURCE,
    "as_tensor": _SOURCE,
    "empty": _SOURCE,
    "eye": _SOURCE,
    "full": _SOURCE,
    "linspace": _SOURCE,
    "ones": _SOURCE,
    "scalar_tensor": _SOURCE,
    "tensor": _SOURCE,
    "tril_indices": _SOURCE,
    "triu_indices": _SOURCE,
    "zeros": _SOURCE,
    # ------------------------------------------------------------------------------------ whole numbers, conditions
    "all": _DISCRETE,
    "allclose": _DISCRETE,
    "any": _DISCRETE,
    "argmax": _DISCRETE,
    "argmin": _DISCRETE,
    "argsort": _DISCRETE,
    "bincount": _DISCRETE,
    "bitwise_and": _DISCRETE,
    "bitwise_not": _DISCRETE,
    "bitwise_or": _DISCRETE,
    "bitwise_xor": _DISCRETE,
    "bucketize": _DISCRETE,
    "count_nonzero": _DISCRETE,
    "equal": _DISCRETE,
    "is_nonzero": _DISCRETE,
    "isclose": _DISCRETE,
    "isfinite": _DISCRETE,
    "isinf": _DISCRETE,
    "isnan": _DISCRETE,
    "isneginf": _DISCRETE,
    "isposinf": _DISCRETE,
    "isreal": _DISCRETE,
    "nonzero": _DISCRETE,
    "one_hot": _DISCRETE,
    "searchsorted": _DISCRETE,
    "signbit": _DISCRETE,
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
    "logsigmoid": "log_sigmoid",
    "_prelu_kernel": "prelu",
    "_reshape_alias": "reshape",
    "_unsafe_index": "index",
}

# What autograd's graph calls operators, or parts of them, that only hand on elements.
AUTOGRAD_COPIES = (
    *("copy_slices", "copy", "as_strided", "reshape_alias", "index_put", "split_with_sizes", "squeeze_multiple"),
    *("fill", "detach", "to_copy"),
)

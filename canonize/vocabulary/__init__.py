"""What is this call? The one place that knows torch's operators.

``resolve`` takes a call of a graph in whatever spelling (function, method, operator, in place, ATen) to torch's own
operator with its arguments by name. What torch knows is asked of torch; the rest is one table, a row an operator.
"""

from canonize.vocabulary.operation import Operation
from canonize.vocabulary.resolve import (
    asks_size,
    counts_in,
    gives_tensor,
    operator_name,
    resolve,
    resolve_call,
    resolve_module,
    row_of,
)
from canonize.vocabulary.table import NOTHING, ROWS, Row

__all__ = [
    "NOTHING",
    "ROWS",
    "Operation",
    "Row",
    "asks_size",
    "counts_in",
    "gives_tensor",
    "operator_name",
    "resolve",
    "resolve_call",
    "resolve_module",
    "row_of",
]

"""TorchScript -> ``nn.Module`` whose ``forward`` any tracer can follow.

A TorchScript file holds a program and no Python. Here the program is interpreted, operator by operator, by modules that
have the names, weights and calls of the scripted ones. A tracer then sees what it sees of any other model: a branch on
a size becomes a check, a branch on values is refused, the batch size stays free. ``make_fx`` on the scripted module
would freeze the sizes of the example in the graph, and every branch with them.
"""

from __future__ import annotations

from canonize.twins.torchscript.facts import constants, narrow_cast
from canonize.twins.torchscript.scripted_modules import Scripted, translated

__all__ = ["Scripted", "constants", "narrow_cast", "translated"]

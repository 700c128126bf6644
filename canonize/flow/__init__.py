"""How a frozen affine travels: what it may pass, which layers can take it, and the plan that says so.

``plan.py`` walks the graph forward (towards the readers) or backward (towards the producers); the other files hold, one
operation family each, what happens to the affine there. A walk changes nothing: it collects edits, and either every end
can take its share, or the whole plan is refused with a reason.
"""

from canonize.flow import (  # noqa: F401  (they register their rules)
    activation,
    attention,
    calls,
    linear_layers,
    movement,
    padding,
    pooling_layers,
    sums,
)
from canonize.flow.plan import Plan, Refused, plan_backward, plan_forward

__all__ = ["Plan", "Refused", "plan_backward", "plan_forward"]

"""Forms that the literature knows beside the canonical one, each off unless asked for (``--form``).

All are exact: they write the same function with other layers, for explainers whose rules fit those better.
"""

from __future__ import annotations

from collections.abc import Sequence

from canonize.errors import CanonizeError
from canonize.forms.batch_norm_as_convolution import BatchNormAsConvolution
from canonize.forms.dense_as_convolution import DenseAsConvolution
from canonize.forms.open_attention import OpenAttention
from canonize.forms.plain_pooling import PlainPooling
from canonize.rewrite.form import Form

FORMS: tuple[Form, ...] = (BatchNormAsConvolution(), DenseAsConvolution(), PlainPooling(), OpenAttention())


def chosen_forms(names: Sequence[str]) -> tuple[Form, ...]:
    """The forms of these names.

    Raises
    ------
    CanonizeError
        If there is none of a name.
    """
    known = {form.name: form for form in FORMS}
    for name in names:
        if name not in known:
            raise CanonizeError(f"there is no form {name!r}", hint=f"Forms: {', '.join(known)}")
    return tuple(form for form in FORMS if form.name in names)


__all__ = ["FORMS", "Form", "chosen_forms"]

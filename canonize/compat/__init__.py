"""What differs from one installation to another: extras that may be missing, and builds that do not fit each other."""

from __future__ import annotations

from canonize.compat.extras import EXTRA_OF, install_command, need, require
from canonize.compat.private import guards_of, has_tag
from canonize.compat.threads import exporting, no_printing, no_warnings
from canonize.compat.torchvision import declare_missing_torchvision_ops, import_torchvision

__all__ = [
    "EXTRA_OF",
    "declare_missing_torchvision_ops",
    "exporting",
    "guards_of",
    "has_tag",
    "import_torchvision",
    "install_command",
    "need",
    "no_printing",
    "no_warnings",
    "require",
]

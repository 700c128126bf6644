"""``python -m canonize`` is ``canonize``."""

from __future__ import annotations

from canonize.cli import main

raise SystemExit(main())

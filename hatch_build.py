"""What a package's page needs and a checkout does not: absolute links, and the addresses of the project.

Where the repository lives is said once, in ``pyproject.toml``; a release says it itself (GitHub sets two variables).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# [text](docs/report.md), ![picture](docs/heatmaps.png), <img src="docs/heatmaps.png">: relative, and no anchor.
LINK = re.compile(r"(\]\(|src=\"|href=\")(?!https?:|mailto:|#)([^)\"\s]+)")
PICTURES = (".png", ".svg", ".jpg", ".gif")


class ReadmeAndAddresses(MetadataHookInterface):
    """Fills ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Write the two fields."""
        root = Path(self.root)
        home = repository(root, str(self.config["repository"]))
        text = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, home)}
        metadata["urls"] = {
            "Homepage": home,
            "Documentation": f"{home}/tree/main/docs",
            "Changelog": f"{home}/blob/main/CHANGELOG.md",
            "Issues": f"{home}/issues",
            "Source": home,
        }


def repository(root: Path, stated: str) -> str:
    """Where the repository lives: as the release says, as the sdist says that this is built from, else as stated."""
    if os.environ.get("GITHUB_REPOSITORY"):
        return f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{os.environ['GITHUB_REPOSITORY']}"
    about = root / "PKG-INFO"
    found = (
        re.search(r"^Project-URL: Homepage, (\S+)$", about.read_text(encoding="utf-8"), re.M)
        if about.exists()
        else None
    )
    return found[1] if found else stated


def absolute(text: str, home: str) -> str:
    """Make the links of a README hold wherever it is shown."""

    def link(match: re.Match[str]) -> str:
        kind = "raw" if match[2].partition("#")[0].endswith(PICTURES) else "blob"
        return f"{match[1]}{home}/{kind}/main/{match[2]}"

    return LINK.sub(link, text)

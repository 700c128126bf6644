"""Facts about the repository and the package as installed."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hatchling.builders.wheel import WheelBuilder

import canonize
from canonize.compat import import_torchvision

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
HEAVY = "torchvision timm onnx onnxruntime onnxscript zennit captum rich typer sympy sklearn scipy safetensors"


def test_import_brings_nothing_heavy_beyond_torch():
    program = (
        "import sys, torch; before = set(sys.modules); import canonize; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    brought = set(done.stdout.split())
    assert "canonize" in brought
    assert not brought & set(HEAVY.split())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    built = next(iter(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))
    return zipfile.ZipFile(built).namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel}
    assert tops == {"canonize", f"canonize-{canonize.__version__}.dist-info"}


def test_the_wheel_holds_every_source_file_and_the_type_marker(wheel):
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "canonize").rglob("*.py")}
    assert sources | {"canonize/py.typed"} <= set(wheel)


def test_one_version():
    assert canonize.__version__ == version("canonize")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    assert f"version: {canonize.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_public_name_exists():
    assert [name for name in canonize.__all__ if not hasattr(canonize, name)] == []


@pytest.mark.parametrize("link", ["patterns", "verify", "cli.py"])
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="an sdist holds no links")
def test_top_level_links_point_into_the_package(link):
    assert (ROOT / link).is_symlink()
    assert (ROOT / link).resolve() == ROOT / "canonize" / link


def test_every_development_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    kinds = ("dev", "zoo", "onnx", "explain", "evaluate", "search")
    wanted = [*project["dependencies"], *(item for kind in kinds for item in extras[kind])]
    names = {item.split(">=")[0].lower() for item in wanted if not item.startswith("canonize[")}
    pins = (ROOT / "constraints-dev.txt").read_text().lower().splitlines()
    assert names - {line.split("==")[0] for line in pins} == set()


def test_every_module_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "canonize").rglob("*.py")
        if path.name != "__main__.py" and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_the_example_model_is_small_and_loads_without_running_code():
    file = ROOT / "examples" / "digits" / "densenet.pt"
    assert file.stat().st_size < 1_000_000
    import_torchvision()
    wanted = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    assert {name.split(".")[0] for name in wanted} <= {"torch", "torchvision"}

"""Stand-ins for the CUDA libraries that a wheel of torch is linked with, so that it imports and runs on a CPU alone.

The wheels on the package index are builds for CUDA and bring several gigabytes of NVIDIA's libraries, none of which a
test on the CPU calls. The loader wants them all the same: here each becomes a small library in which every symbol that
torch refers to is a function that fails (or, where torch calls it while it is imported, answers with nothing). Needs
gcc, readelf and nm.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# The beginning of a symbol, and of the library that has it; the longest that fits counts.
HOMES = {
    "cuda": "libcudart.so", "__cuda": "libcudart.so", "cu": "libcuda.so", "cublas": "libcublas.so",
    "cublasLt": "libcublasLt.so", "cudnn": "libcudnn.so", "nccl": "libnccl.so", "cusparse": "libcusparse.so",
    "cusparseLt": "libcusparseLt.so", "cufft": "libcufft.so", "curand": "libcurand.so", "cusolver": "libcusolver.so",
    "cupti": "libcupti.so", "nvrtc": "libnvrtc.so", "nvshmem": "libnvshmem_host.so", "cufile": "libcufile.so",
    "cuFile": "libcufile.so", "nvJitLink": "libnvJitLink.so", "nvtx": "libnvtx",
}  # fmt: skip
SYMBOL = re.compile(r"_?_?(cu|nccl|nv|CUpti|cupti|__cuda)")
LIBRARY = re.compile(r"lib(cu|nv|nccl)")
FAILS = 100  # cudaErrorNoDevice


def write_stubs(site: Path) -> list[str]:
    """Write the stand-ins that a torch below `site` lacks.

    Parameters
    ----------
    site : Path
        A ``site-packages`` with torch in it.

    Returns
    -------
    list of str
        Their names; empty for a build without CUDA.
    """
    folder = site / "torch" / "lib"
    own = [p for p in folder.glob("*.so*") if p.stat().st_size and (not LIBRARY.match(p.name) or "caffe2" in p.name)]
    needed, undefined, defined = _symbols(own)
    needed -= {p.name for p in own}
    symbols: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(undefined) - defined):
        library = _home(name, needed) if SYMBOL.match(name) else None
        if library is not None:
            symbols[library].append(name)
    for library in sorted(needed):
        _compile(folder / library, symbols[library], undefined)
    return sorted(needed)


def _symbols(libraries: list[Path]) -> tuple[set[str], dict[str, str], set[str]]:
    """Names of the libraries that these need; symbols that they lack, with their versions; symbols that they have."""
    needed: set[str] = set()
    undefined: dict[str, str] = {}
    defined: set[str] = set()
    for library in libraries:
        for line in _lines("readelf", "-d", library):
            name = line.partition("[")[2].rstrip("]")
            if "NEEDED" in line and LIBRARY.match(name):
                needed.add(name)
        for line in _lines("nm", "-D", library):
            fields = line.split()
            if fields[0] == "U":
                name, _, version = fields[1].partition("@")
                undefined[name] = version.lstrip("@")
            elif len(fields) == 3:
                defined.add(fields[2].split("@")[0])
    return needed, undefined, defined


def _lines(*command: str | Path) -> list[str]:
    return subprocess.run(list(command), capture_output=True, text=True, check=True).stdout.splitlines()


def _home(symbol: str, libraries: set[str]) -> str | None:
    starts = [start for start in HOMES if symbol.startswith(start)]
    if not starts:
        return None
    wanted = HOMES[max(starts, key=len)]
    found = [name for name in libraries if name.startswith(wanted)]
    found += [name for name in libraries if name.startswith("libcudart")]
    return found[0] if found else None


def _compile(library: Path, symbols: list[str], versions: dict[str, str]) -> None:
    code = "\n".join(_function(name) for name in symbols)
    options = []
    by_version: dict[str, list[str]] = defaultdict(list)
    for name in symbols:
        if versions[name]:
            by_version[versions[name]].append(name)
    if by_version:
        script = library.with_suffix(".map")
        script.write_text("\n".join(f"{v} {{ global: {'; '.join(names)}; }};" for v, names in by_version.items()))
        options = [f"-Wl,--version-script={script}"]
    command = ["gcc", *options, "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=code, text=True, check=True)


def _function(name: str) -> str:
    if name == "__cudaRegisterFatBinary":
        return f"static void *handle[8]; void **{name}(void) {{ return handle; }}"
    if name in ("cudaGetErrorString", "cudaGetErrorName"):
        return f'const char *{name}(void) {{ return "there is no CUDA"; }}'
    called_on_import = name.startswith(("__cuda", "cupti"))
    return f"int {name}(void) {{ return {0 if called_on_import else FAILS}; }}"


if __name__ == "__main__":
    print(*write_stubs(Path(sys.argv[1])), sep="\n")

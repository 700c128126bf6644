"""Spectral relevance analysis (SpRAy) of a project that ``canonize explain ... --project`` wrote, with CoRelAy.

    ENVIRONMENT/bin/python examples/spray/analyse.py PROJECT [--eigenvalues 8] [--clusters 2 3 4]

Of each class with enough samples: the spectral embedding of its heatmaps, a t-SNE of that, and k-means clusters
(Lapuschkin et al. 2019; Anders et al. 2021). Writes ``analysis.h5`` beside ``project.yaml`` and names it there, so that
``virelay PROJECT/project.yaml`` shows it. Needs nothing of canonize: run it in CoRelAy's environment
(``environment.sh``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from corelay.pipeline.spectral import SpectralEmbedding
from corelay.processor.affinity import SparseKNN
from corelay.processor.clustering import KMeans
from corelay.processor.embedding import EigenDecomposition, TSNEEmbedding

SIDE = 32


def heatmaps(attribution: Any) -> Any:
    """Relevance (N, C, H, W) as rows of numbers: pooled over channels and squares of pixels, each row's size 1."""
    pooled = attribution.astype(np.float64).sum(1)
    for axis in (1, 2):
        step = max(1, pooled.shape[axis] // SIDE)
        pooled = np.add.reduceat(pooled, np.arange(0, pooled.shape[axis], step), axis)
    rows = pooled.reshape(len(pooled), -1)
    return rows / np.maximum(np.abs(rows).sum(1, keepdims=True), np.finfo(np.float64).tiny)


def analysed(rows: Any, eigenvalues: int, clusters: list[int]) -> dict[str, Any]:
    """Spectral embedding, t-SNE and clusters of some heatmaps."""
    few = len(rows) - 1
    pipeline = SpectralEmbedding(
        affinity=SparseKNN(n_neighbors=min(10, max(2, few // 2)), symmetric=True),
        embedding=EigenDecomposition(n_eigval=min(eigenvalues, few - 1), is_output=True),
    )
    values, vectors = pipeline(rows)
    spectral = np.asarray(vectors, dtype=np.float32)
    return {
        "eigenvalue": np.asarray(values, dtype=np.float32),
        "spectral": spectral,
        "tsne": np.asarray(TSNEEmbedding(perplexity=min(30.0, few / 3))(spectral), dtype=np.float32),
        "clusters": {k: np.asarray(KMeans(n_clusters=k)(spectral)) for k in clusters if k <= few},
    }


def main() -> None:
    """Analyse a project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path, help="folder that holds project.yaml")
    parser.add_argument("--eigenvalues", type=int, default=8)
    parser.add_argument("--clusters", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--least", type=int, default=6, help="samples that a class must have")
    wanted = parser.parse_args()
    file = wanted.project / "project.yaml"
    told = yaml.safe_load(file.read_text(encoding="utf-8"))
    names = {entry["index"]: entry["word_net_id"] for entry in json.loads((wanted.project / "labels.json").read_text())}
    with h5py.File(wanted.project / told["project"]["attributions"]["sources"][0]) as opened:
        attribution, labels, index = (opened[name][:] for name in ("attribution", "label", "index"))
    done = 0
    with h5py.File(wanted.project / "analysis.h5", "w") as out:
        for label in np.unique(labels):
            chosen = labels == label
            if chosen.sum() < wanted.least:
                continue
            found = analysed(heatmaps(attribution[chosen]), wanted.eigenvalues, wanted.clusters)
            group = out.create_group(names[int(label)])
            group["index"] = index[chosen].astype(np.uint32)
            group["embedding/spectral"], group["embedding/tsne"] = found["spectral"], found["tsne"]
            group["embedding/spectral"].attrs["eigenvalue"] = found["eigenvalue"]
            group["embedding/tsne"].attrs["embedding"] = "spectral"
            for k, assigned in found["clusters"].items():
                group[f"cluster/kmeans-{k:02}"] = assigned
                group[f"cluster/kmeans-{k:02}"].attrs.update({"embedding": "spectral", "k": k})
            done += 1
    if not done:
        raise SystemExit(f"no class has {wanted.least} samples: explain more pictures, or give --least")
    told["project"]["analyses"] = [{"analysis_method": "Spectral analysis", "sources": ["analysis.h5"]}]
    file.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    print(f"{done} classes analysed; virelay {file} shows them")


if __name__ == "__main__":
    main()

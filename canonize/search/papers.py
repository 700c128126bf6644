"""The experiments of the papers, on what can be had anywhere: the shipped networks and the generated data.

Pahde et al. 2023: Table 1 (classification: sparseness, region perturbation, localisation, sensitivity, random logit,
with and without canonization), Table 2 (a Relation Network on questions about one and about several objects), and the
search over gamma for groups of layers (Fig. 2), of which part of the grid is tried.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from canonize.evaluate.experiment import Experiment, ModelSource
from canonize.evaluate.metrics.catalogue import Settings
from canonize.evaluate.metrics.pooling import Pooling

if TYPE_CHECKING:
    from canonize.search import Search

METHODS = ("excitation-backprop", "alpha2-beta1", "epsilon-plus")
QUESTIONED = ("excitation-backprop", "lrp-custom")
MEASURED = ("sparseness", "region-perturbation", "rank-accuracy", "mass-accuracy", "avg-sensitivity", "random-logit")
# As the authors have them (`canonize.evaluate.presets`), but for what is counted in pixels: ours are smaller images.
SETTINGS = Settings(select="absolute", normalise="second-moment")
TRIALS = 120


def table_1(samples: int = 64, seeds: int = 3) -> Experiment:
    """VGG, ResNet, EfficientNet and DenseNet on digits."""
    return Experiment(
        models=tuple(ModelSource(name, f"shipped:{name}") for name in ("vgg", "resnet", "efficientnet", "densenet")),
        data=("digits",),
        canonizations=("none", "threshold"),
        methods=METHODS,
        metrics=MEASURED,
        samples=samples,
        seeds=tuple(range(seeds)),
        settings=SETTINGS,
        title="As in Table 1 of Pahde et al. 2023: digits on photographs",
    )


def table_2(samples: int = 64, seeds: int = 3, pooling: Pooling = "pos-l2-norm-sq") -> Experiment:
    """The Relation Network on Sort-of-CLEVR."""
    return Experiment(
        models=(ModelSource("relation_network", "shipped:relation_network"),),
        data=("sort-of-clevr-simple", "sort-of-clevr-complex"),
        canonizations=("none", "threshold"),
        methods=QUESTIONED,
        metrics=MEASURED,
        samples=samples,
        seeds=tuple(range(seeds)),
        settings=replace(SETTINGS, pooling=pooling),
        title=f"As in Table 2 of Pahde et al. 2023: questions about scenes, {pooling} pooling",
    )


def localisation(samples: int = 64, seeds: int = 2) -> Experiment:
    """LRP beside its controls, by where relevance lies: Motzkus et al. 2022, Kohlbrenner et al. 2020."""
    return Experiment(
        models=tuple(ModelSource(name, f"shipped:{name}") for name in ("vgg", "resnet")),
        data=("digits",),
        canonizations=("none", "threshold"),
        methods=("gradient", "guided-backprop", "input-x-gradient", "epsilon", "epsilon-plus", "alpha2-beta1"),
        metrics=("mu", "mu-weighted", "object-occlusion", "context-occlusion"),
        samples=samples,
        seeds=tuple(range(seeds)),
        title="Where relevance lies, as in Motzkus et al. 2022 and Kohlbrenner et al. 2020",
    )


def gamma_search(samples: int = 32, trials: int = TRIALS) -> Search:
    """Gamma for low, middle, high layers and the classifier, with and without canonization."""
    from canonize.search import SPACES, Search

    return Search(
        model=ModelSource("resnet", "shipped:resnet"),
        data="digits",
        space=SPACES["papers"],
        objectives=("mass-accuracy", "region-perturbation"),
        trials=trials,
        samples=samples,
        sampler="grid",
    )

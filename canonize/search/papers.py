"""The experiments of the papers, on what can be had anywhere: the shipped networks and the generated data.

Pahde et al. 2023: Table 1 (classification: sparseness, region perturbation, localisation, sensitivity, random logit,
with and without canonization), Table 2 (a Relation Network on questions about one and about several objects), and the
search over gamma for groups of layers (Fig. 2), of which part of the grid is tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from canonize.evaluate.plan import Experiment, ModelSource

if TYPE_CHECKING:
    from canonize.search import Search

METHODS = ("excitation-backprop", "alpha2-beta1", "epsilon-plus")
# The Relation Network's logits are often negative, even the largest: relevance starts with the logit, as in CLEVR-XAI.
QUESTIONED = ("excitation-backprop", "alpha2-beta1:initial=output", "epsilon-plus:initial=output")
TRIALS = 120


def table_1(samples: int = 64, seeds: int = 3) -> Experiment:
    """VGG, ResNet and DenseNet on digits."""
    return Experiment(
        models=tuple(ModelSource(name, f"shipped:{name}") for name in ("vgg", "resnet", "densenet")),
        data=("digits",),
        canonizations=("none", "threshold"),
        methods=METHODS,
        metrics=(
            *("sparseness", "region-perturbation", "rank-accuracy", "mass-accuracy"),
            *("avg-sensitivity", "random-logit"),
        ),
        samples=samples,
        seeds=tuple(range(seeds)),
        title="As in Table 1 of Pahde et al. 2023: digits on photographs",
    )


def table_2(samples: int = 64, seeds: int = 3) -> Experiment:
    """The Relation Network on Sort-of-CLEVR."""
    return Experiment(
        models=(ModelSource("relation_network", "shipped:relation_network"),),
        data=("sort-of-clevr-simple", "sort-of-clevr-complex"),
        canonizations=("none", "threshold"),
        methods=QUESTIONED,
        metrics=("rank-accuracy", "mass-accuracy", "sparseness"),
        samples=samples,
        seeds=tuple(range(seeds)),
        title="As in Table 2 of Pahde et al. 2023: questions about scenes",
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

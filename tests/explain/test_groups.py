"""Groups of layers: the published partition, and those that a user names."""

from __future__ import annotations

import pytest
from torch import nn

from canonize.errors import ExplainError
from canonize.explain import layer_groups
from canonize.explain.grouping import select_layers


def chain(convolutions: int, dense: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(1, 1, 1) for _ in range(convolutions)]
    return nn.Sequential(*layers, nn.Flatten(), *(nn.Linear(1, 1) for _ in range(dense)))


@pytest.mark.parametrize(
    ("convolutions", "sizes"),
    [
        (10, [3, 4, 3]),  # VGG-13
        (13, [4, 5, 4]),  # VGG-16
        (20, [5, 10, 5]),  # ResNet-18, its shortcuts counted
        (6, [2, 2, 2]),
        (3, [1, 1, 1]),
    ],
)
def test_the_published_partition(convolutions, sizes):
    groups = layer_groups(chain(convolutions))
    assert [len(groups[name]) for name in ("low", "middle", "high")] == sizes
    assert [*groups["low"], *groups["middle"], *groups["high"]] == [str(i) for i in range(convolutions)]
    assert len(groups["classifier"]) == 1


def test_networks_with_few_convolutions_have_a_low_group():
    assert {name: len(of) for name, of in layer_groups(chain(2), classifier=None).items()} == {
        "low": 1, "middle": 1, "high": 1,
    }  # fmt: skip
    assert list(layer_groups(chain(2))) == ["low", "high", "classifier"]
    assert list(layer_groups(chain(1))) == ["low", "classifier"]
    assert list(layer_groups(chain(0))) == ["classifier"]


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("layers", range(30))
def test_every_layer_is_in_one_group_whatever_their_number(layers, count):
    groups = layer_groups(chain(layers), [f"g{i}" for i in range(count)])
    groups.pop("classifier")
    assert [name for group in groups.values() for name in group] == [str(i) for i in range(layers)]
    if layers:
        assert "g0" in groups


def named() -> nn.Sequential:
    model = nn.Sequential()
    for name in ("stem", "body1", "body2", "head"):
        model.add_module(name, nn.Linear(1, 1) if name == "head" else nn.Conv1d(1, 1, 1))
    return model


@pytest.mark.parametrize(
    ("patterns", "layers"),
    [
        ("1", ["stem"]),
        ("2-3", ["body1", "body2"]),
        ("3-", ["body2", "head"]),
        ("3-99", ["body2", "head"]),
        (("body*", "head"), ["body1", "body2", "head"]),
        (("head", "1-2"), ["stem", "body1", "head"]),
    ],
)
def test_layers_by_name_pattern_or_place(patterns, layers):
    assert select_layers(named(), patterns) == layers


def test_a_number_that_is_a_name_is_the_name():
    assert select_layers(chain(3), "1") == ["1"] and select_layers(chain(3), "1-1") == ["0"]


@pytest.mark.parametrize("pattern", ["5", "3-2", "tail*", "9-"])
def test_a_pattern_that_names_no_layer_is_refused(pattern):
    with pytest.raises(ExplainError, match=r"names none of the 4 linear layers.*stem"):
        select_layers(named(), ("stem", pattern))

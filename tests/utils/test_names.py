"""Suggestions for misspelled names."""

from __future__ import annotations

import pytest

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.settings.names import did_you_mean, nearest


def test_the_nearest_names_come_best_first_in_their_own_spelling() -> None:
    assert nearest("BACKBONE_2D", ["vfe", "backbone_3d", "backbone_2d"]) == ["backbone_2d", "backbone_3d"]


def test_names_that_differ_in_case_alone_are_all_suggested() -> None:
    assert nearest("blocks", ["Blocks", "blocks"]) == ["Blocks", "blocks"]


def test_at_most_count_names_are_suggested() -> None:
    assert len(nearest("conv", ["conv0", "conv1", "conv2", "conv3"], count=2)) == 2


@pytest.mark.parametrize("name", ["zzz", "", 7])
def test_nothing_is_suggested_where_nothing_is_alike(name: object) -> None:
    assert did_you_mean(name, ["PillarVFE", "MeanVFE"]) == ""


def test_a_registry_names_the_kind_the_name_got_all_known_names_and_the_nearest() -> None:
    vfes: Registry[type] = Registry("VFE")
    vfes.register_as("MeanVFE")(int)
    vfes.register_as("PillarVFE")(float)
    with pytest.raises(ConfigError) as error:
        vfes.get("pilarvfe")
    assert str(error.value) == (
        "VFE NAME must be one of MeanVFE, PillarVFE; got 'pilarvfe'; did you mean PillarVFE?"
    )


def test_a_name_cannot_be_registered_twice() -> None:
    vfes: Registry[type] = Registry("VFE")
    vfes.register_as("MeanVFE")(int)
    with pytest.raises(ConfigError, match="'MeanVFE'"):
        vfes.register_as("MeanVFE")(float)

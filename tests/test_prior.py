"""Every weight that a prior is meant for has it: a name in a list that no parameter bears would leave it out in silence."""

from dataclasses import fields
from pathlib import Path
from typing import Literal

import pytest

from datamodules.shards.shard import Shards
from models.history import HistoryConfig
from models.two_tower import TwoTower, TwoTowerConfig
from train.embed import load_embedding
from train.prior import OPTIONAL_PARAMETERS, PARAMETER_GROUPS, Prior, PriorConfig, parameter_groups
from train.run import content_of, sizes_of


@pytest.mark.parametrize("encoder", ["mean", "attention"])
def test_every_name_is_a_parameter_of_the_ranker(shards: Path, encoder: Literal["mean", "attention"]) -> None:
    opened = Shards.open(shards)
    config = TwoTowerConfig(history=HistoryConfig(encoder=encoder))
    model = TwoTower(
        config, sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    parameters = dict(model.named_parameters())
    names = {name for group in parameter_groups(opened.context).values() for name in group}
    absent = names - parameters.keys()
    assert absent == (set() if encoder == "attention" else set(OPTIONAL_PARAMETERS))
    assert Prior(model, PriorConfig()).parameters() == {id(parameters[name]) for name in names - absent}


def test_a_name_that_no_parameter_bears_is_refused(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Shards.open(shards)
    model = TwoTower(
        TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    monkeypatch.setitem(PARAMETER_GROUPS, "engaged", ("engagement.no_such.weight",))
    with pytest.raises(AssertionError, match=r"engagement\.no_such\.weight"):
        Prior(model, PriorConfig())


def test_no_prior_at_all_is_none(shards: Path) -> None:
    opened = Shards.open(shards)
    model = TwoTower(
        TwoTowerConfig(), sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    none = Prior(model, PriorConfig(**{field.name: 0.0 for field in fields(PriorConfig)}))
    assert float(none.loss().detach()) == 0
    assert not none.parameters()
    some = Prior(
        model, PriorConfig(appeal=2.0, context=0, artwork=0, affinity=0, engaged=0, distance=0, presentation=0)
    )
    expected = sum(
        float(model.get_parameter(name).square().sum())
        for name in ("artwork_query.weight", "artwork_query_context.tables.device_rows.weight")
    )
    expected += float(model.artwork_vector.weight.square().sum())
    assert float(some.loss().detach()) == pytest.approx(expected, rel=1e-5)

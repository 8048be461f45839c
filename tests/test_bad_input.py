"""What a user can get wrong about a training ends in one line that names it; what is merely large is trained on."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.feed.impression_feed import Feed
from datamodules.prepare.prepare import prepare
from datamodules.shards.shard import TEST, TRAIN, VALIDATION, Shards
from foundation.errors import UserError
from train.config import FitConfig
from train.fit import fit
from train.next_title import TitlesConfig

SHORT = FitConfig(epochs=1, validations_per_epoch=2, batch=512)


@pytest.fixture
def own(shards: Path, tmp_path: Path) -> Path:
    """A copy of the shards to damage."""
    return shutil.copytree(shards, tmp_path / "shards")


def change(shards: Path, **fields: object) -> None:
    manifest = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
    (shards / "manifest.json").write_text(json.dumps(manifest | fields), encoding="utf-8")


def test_shards_of_another_contract_version(own: Path, tmp_path: Path) -> None:
    change(own, contract_version=7)
    with pytest.raises(UserError, match=r"manifest\.json: contract version 7, .*Run keyart prepare again"):
        fit(own, tmp_path / "run", SHORT)


def test_shards_other_than_the_runs(own: Path, tmp_path: Path) -> None:
    fit(own, tmp_path / "run", SHORT, stop_after=1)
    change(own, fingerprint="another log")
    with pytest.raises(UserError, match=f"{tmp_path / 'run'}: holds a run of other shards"):
        fit(own, tmp_path / "run", SHORT)


def test_a_year_that_only_the_validation_meets(own: Path, tmp_path: Path) -> None:
    """The training's loss is finite, the validation's is not, and no weights are kept."""
    folder = own / "shard-00000"
    shard, split = Shards.open(own).shards[0], np.load(folder / "split.npy")
    title = int(np.asarray(shard.title)[split == VALIDATION][0])
    split[(split == TRAIN) & (np.asarray(shard.title) == title)] = TEST
    plays, years = np.load(folder / "play_title.npy"), np.load(own / "catalogue" / "title_year.npy")
    plays[plays == title] = 0
    years[title] = np.nan
    for path, values in (
        (folder / "split.npy", split),
        (folder / "play_title.npy", plays),
        (own / "catalogue" / "title_year.npy", years),
    ):
        np.save(path, values)
    without_digests(own)
    with pytest.raises(UserError, match=r"run: log loss nan at validation 1, in training 0\.\d"):
        fit(own, tmp_path / "run", replace(SHORT, titles=TitlesConfig(weight=0)))  # which would draw the title


def without_digests(shards: Path) -> None:
    """Shards that were changed on purpose, as if they were of before files had digests."""
    manifest = json.loads((shards / "manifest.json").read_text(encoding="utf-8"))
    (shards / "manifest.json").write_text(json.dumps(manifest | {"files": {}}), encoding="utf-8")


@pytest.mark.parametrize("kept", [None, 0.5])
def test_a_shard_file_that_is_missing_or_cut_short(own: Path, tmp_path: Path, kept: float | None) -> None:
    path = own / "shard-00000" / "title.npy"
    if kept is None:
        path.unlink()
    else:
        os.truncate(path, int(path.stat().st_size * kept))
    for message in ("is missing or is not the file that keyart prepare wrote", "cannot be mapped"):
        with pytest.raises(UserError, match=rf"{path}: {message}.*Run keyart prepare again"):
            fit(own, tmp_path / "run", SHORT)
        without_digests(own)  # as older shards are


def test_a_batch_or_slices_that_do_not_fit_say_what_would(shards: Path, tmp_path: Path) -> None:
    size = Shards.open(shards).manifest["splits"]["train"]["impressions"]
    with pytest.raises(UserError, match=rf"batch={size + 1}: more than the {size} training .*at most {size // 2} fit"):
        fit(shards, tmp_path / "run", replace(SHORT, batch=size + 1))
    with pytest.raises(
        UserError, match=r"validations_per_epoch=500: more than the 12 batches of an epoch. Give at most 12"
    ):
        fit(shards, tmp_path / "run", replace(SHORT, validations_per_epoch=500))
    assert not (tmp_path / "run").exists()
    fit(shards, tmp_path / "run", replace(SHORT, batch=size // 2), stop_after=1)


@pytest.mark.parametrize("devices", [2000])
def test_missing_devices(shards: Path, tmp_path: Path, devices: int) -> None:
    with pytest.raises(UserError, match=rf"devices={devices}: this machine has \d+ .*Give at most \d+"):
        fit(shards, tmp_path / "run", replace(SHORT, devices=devices))


def test_a_member_with_a_hundred_thousand_plays_trains(service: Path, shards: Path, tmp_path: Path) -> None:
    """Its plays are read in windows: no batch is longer than two reaches, whatever the history."""
    dataset = shutil.copytree(service, tmp_path / "service")
    path = next((dataset / "plays").glob("*.parquet"))
    plays = pq.read_table(path)
    impressions = pq.read_table(dataset / "impressions", columns=["member_id"])
    member = pa.array([impressions["member_id"][0].as_py()] * 100_000)
    many = plays.take(pa.array([n % len(plays) for n in range(100_000)]))
    many = many.set_column(many.schema.get_field_index("member_id"), plays.schema.field("member_id"), member)
    pq.write_table(pa.concat_tables([plays, many]), path)
    prepare(dataset, tmp_path / "shards", like=shards)
    opened = Shards.open(tmp_path / "shards")
    longest = max(int((shard.history_end - shard.history_start).max()) for shard in opened.shards)
    assert longest > 50_000
    reach = SHORT.model.history.reach
    feed = Feed(opened.shards, TRAIN, reach=reach, impressions=512, shuffle=True)
    assert max(batch.play_title.shape[1] for batch in feed) <= 2 * reach
    assert fit(tmp_path / "shards", tmp_path / "run", SHORT)["validation_log_loss"] < 0.4

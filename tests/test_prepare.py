"""Preparing: histories hold exactly the plays strictly before, whatever the log looks like."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_logs import START, TITLES, RandomLog

from datamodules.contract import UserError
from datamodules.prepare import PrepareConfig, prepare
from datamodules.shards import TEST, TRAIN, VALIDATION, Shards

MEMBERS = ["a", "b", "\N{GRINNING FACE}", "d'e\nf"]
MINUTES = st.integers(0, 12)  # few, so that plays and impressions fall on the same instant
LOGS = st.builds(
    RandomLog,
    st.lists(st.tuples(st.sampled_from(MEMBERS), st.integers(0, 2), MINUTES), max_size=25),
    st.lists(
        st.tuples(st.sampled_from(MEMBERS), st.integers(0, 2), st.integers(0, 3), MINUTES, st.booleans()),
        min_size=4,
        max_size=25,
    ),
)


def told(shards: Shards) -> dict[str, tuple[list[str], int]]:
    """impression id -> (titles of its history in order, split), read from the arrays."""
    names = ["?", *shards.vocabularies["titles"].values]
    found = {}
    for shard in shards.shards:
        for n, impression in enumerate(shard.ids()):
            rows = shard.play_title[shard.history_start[n] : shard.history_end[n]]
            found[impression.decode()] = [names[row] for row in rows], int(shard.split[n])
    return found


@settings(max_examples=25, deadline=None)
@given(log=LOGS, shard_count=st.integers(1, 3))
def test_a_history_is_the_plays_strictly_before(log: RandomLog, shard_count: int) -> None:
    with TemporaryDirectory() as folder:
        log.write(Path(folder) / "log")
        prepare(Path(folder) / "log", Path(folder) / "shards", PrepareConfig(shards=shard_count))
        found = told(Shards.open(Path(folder) / "shards"))
    assert sorted(found) == sorted(log.ids)
    for impression, (member, _, _, at, _) in zip(log.ids, log.impressions, strict=True):
        before = sorted((minute, TITLES[t]) for m, t, minute in log.plays if m == member and minute < at)
        assert found[impression][0] == [title for _, title in before]


@settings(max_examples=10, deadline=None)
@given(log=LOGS, late=st.integers(0, 3))
def test_a_future_play_changes_nothing(log: RandomLog, late: int) -> None:
    last = max(at for *_, at, _ in log.impressions)
    future = RandomLog([*log.plays, (MEMBERS[late], 1, last), (MEMBERS[late], 2, last + 500)], log.impressions)
    with TemporaryDirectory() as folder:
        answers = []
        for name, one in (("log", log), ("future", future)):
            one.write(Path(folder) / name)
            prepare(Path(folder) / name, Path(folder) / f"{name}-shards")
            shards = Shards.open(Path(folder) / f"{name}-shards")
            answers.append((told(shards), {k: v.values[: v.trained] for k, v in shards.vocabularies.items()}))
    assert answers[0] == answers[1]


def test_time_decides_the_split(tmp_path: Path) -> None:
    log = RandomLog([], [("a", 0, 0, minute, False) for minute in range(20)])
    log.write(tmp_path / "log")
    manifest = prepare(tmp_path / "log", tmp_path / "shards")
    split = np.array(
        [s for _, (_, s) in sorted(told(Shards.open(tmp_path / "shards")).items(), key=lambda x: int(x[0][1:]))]
    )
    assert split.tolist() == [TRAIN] * 14 + [VALIDATION] * 3 + [TEST] * 3
    assert manifest["test_from"] == START.replace(minute=17).isoformat()


def test_vocabularies_are_of_the_training_period(tmp_path: Path) -> None:
    log = RandomLog(
        [("a", 0, 0), ("a", 1, 19)], [("a", 0, 0, minute, False) for minute in range(19)] + [("a", 2, 0, 19, True)]
    )
    log.write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "shards")
    words = Shards.open(tmp_path / "shards").vocabularies
    assert words["titles"].values[: words["titles"].trained] == ["t0"]
    assert sorted(words["titles"].values) == sorted(TITLES)
    assert words["genres"].values == ["Drama"]
    assert words["titles"].row("nobody has heard of it") == 0


def test_since_gives_the_same_arrays(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    plays = [(f"m{chance.integers(5)}", int(chance.integers(3)), int(chance.integers(60))) for _ in range(80)]
    shown = [(f"m{chance.integers(5)}", int(chance.integers(3)), 0, int(chance.integers(60)), False) for _ in range(60)]
    RandomLog(plays, shown).write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "whole")
    whole = Shards.open(tmp_path / "whole")
    since = START.replace(minute=40)
    prepare(tmp_path / "log", tmp_path / "day", vocabularies=whole.vocabularies, since=since)
    day = {k: v[0] for k, v in told(Shards.open(tmp_path / "day")).items()}
    late = {f"i{n}" for n, (*_, at, _) in enumerate(shown) if at >= 40}
    assert day == {k: v[0] for k, v in told(whole).items() if k in late}


def test_other_versions_and_strangers_are_refused(tmp_path: Path) -> None:
    RandomLog([], [("a", 0, 0, minute, False) for minute in range(8)]).write(tmp_path / "log")
    prepare(tmp_path / "log", tmp_path / "shards")
    path = tmp_path / "shards" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"contract_version": 7}))
    with pytest.raises(UserError, match="contract version 7"):
        Shards.open(tmp_path / "shards")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        Shards.open(tmp_path)
    (tmp_path / "shards" / "shard-00000" / "title.npy").write_bytes(b"cut short")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"contract_version": 1}))
    with pytest.raises(UserError, match=r"title\.npy: cannot be mapped"):
        _ = Shards.open(tmp_path / "shards").shards

"""Every way to break the rows of a small dataset, one rule at a time, and what `check` must say of it.

The dataset is that of `test_check.py`. Each case is a function that writes into the folder, with the rule, the table or
file, the count and the first offenders expected.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.dataset_edits import (
    PART_0,
    PART_1,
    Break,
    add,
    cast_column,
    drop,
    put,
    shown,
    with_embeddings,
)


def with_minutes(*minutes: float | None) -> Callable[[Path], None]:
    """Give both files of impressions minutes, the second file these."""

    def edit(dataset: Path) -> None:
        add(dataset / PART_0, "minutes", pa.array([None] * 4, pa.float32()))
        add(dataset / PART_1, "minutes", pa.array(minutes, pa.float32()))

    return edit


FUTURE = datetime.now(UTC).replace(microsecond=0) + timedelta(days=400)
ROW_BREAKS = (
    Break(
        rule="null-image",
        where="artworks.parquet",
        first=("a1",),
        by=lambda d: put(d / "artworks.parquet", 1, image=None),
        says="1 row with neither image nor embedding (first: a1). Name the image's file",
    ),
    Break(
        rule="null-image",
        where="artworks.parquet",
        count=5,
        first=("a0", "a1", "a2"),
        by=lambda d: (drop(d / "artworks.parquet", "image"), with_embeddings(*[None] * 3, [], None)(d)),
    ),
    Break(
        rule="missing-embedding",
        where="artworks.parquet",
        count=2,
        first=("a3", "a4"),
        by=with_embeddings([], None),
        says="2 rows without an embedding, which other rows have",
    ),
    Break(
        rule="embedding-length",
        where="artworks.parquet",
        first=("a4, length 2",),
        by=with_embeddings([1.0, 2.0]),
    ),
    Break(
        rule="embedding-values",
        where="artworks.parquet",
        count=3,
        first=("a2, value nan", "a3, value inf", "a4, value null"),
        by=with_embeddings([1.0, float("nan"), 2.0], [float("inf"), 1.0, 2.0], [1.0, None, 2.0]),
    ),
    Break(
        rule="embedding-values",
        where="artworks.parquet",
        first=("a4, value 1e+39",),
        by=with_embeddings([1.0, 2.0, 1e39], type_=pa.list_(pa.float64())),
    ),
    Break(rule="embedding-zero", where="artworks.parquet", first=("a4",), by=with_embeddings([0.0, -0.0, 0.0])),
    Break(rule="null-impression-id", where=PART_1, first=("null",), by=shown(impression_id=None)),
    Break(rule="null-member-id", where=PART_1, first=("i6",), by=shown(member_id=None)),
    *(
        Break(rule="null-member-id", where=PART_1, first=("i6",), by=shown(member_id=id_), says="is null or blank")
        for id_ in ("", " \t\n", "\0", "\xa0", "\u3000\u200b", "\ufeff")
    ),
    *(
        Break(rule="placeholder-member-id", where=where, first=(f"{key}, member_id {id_}",), by=by)
        for id_ in ("nan", "None", "<NA>", "\\N")
        for where, key, by in (
            (PART_1, "i6", shown(member_id=id_)),
            ("plays/part-0.parquet", id_, lambda d, id_=id_: put(d / "plays/part-0.parquet", 2, member_id=id_)),
        )
    ),
    Break(rule="null-impression-id", where=PART_1, first=("null",), by=shown(impression_id=" \t")),
    Break(rule="null-in-candidates", where=PART_1, first=("i6",), by=shown(candidates=["a0", " ", "a2"])),
    Break(rule="null-in-candidates", where=PART_1, first=("i6",), by=shown(candidates=["a0", "", "a2"])),
    Break(
        rule="null-title-id",
        where="plays/part-0.parquet",
        first=("m0",),
        by=lambda d: put(d / "plays/part-0.parquet", 0, title_id="  "),
    ),
    Break(
        rule="release-year-range",
        where="titles.parquet",
        first=("t0, release_year 19990101",),
        by=lambda d: put(d / "titles.parquet", 0, release_year=19990101),
    ),
    Break(
        rule="release-year-range",
        where="titles.parquet",
        count=2,
        first=("t0, release_year 0", "t1, release_year 9999"),
        by=lambda d: [put(d / "titles.parquet", row, release_year=year) for row, year in ((0, 0), (1, 9999))],
    ),
    Break(rule="null-clicked", where=PART_1, first=("i6",), by=shown(clicked=None)),
    Break(
        rule="null-title-id",
        where="plays/part-0.parquet",
        first=("m0",),
        by=lambda d: put(d / "plays/part-0.parquet", 0, title_id=None),
    ),
    Break(
        rule="null-in-genres",
        where="titles.parquet",
        first=("t1",),
        by=lambda d: put(d / "titles.parquet", 1, genres=[None]),
    ),
    Break(
        rule="duplicate-impression-id",
        where=f"{PART_0} and 1 more file",
        count=2,
        first=("i2", "i2"),
        by=shown(impression_id="i2"),
    ),
    Break(
        rule="duplicate-title-id",
        where="titles.parquet",
        count=4,
        first=("t0", "t0", "t1"),
        by=lambda d: pq.write_table(pa.concat_tables([pq.read_table(d / "titles.parquet")] * 2), d / "titles.parquet"),
    ),
    Break(
        rule="duplicate-artwork-id",
        where="artworks.parquet",
        count=10,
        first=("a0", "a0", "a1"),
        by=lambda d: pq.write_table(
            pa.concat_tables([pq.read_table(d / "artworks.parquet")] * 2), d / "artworks.parquet"
        ),
    ),
    Break(
        rule="duplicate-member-id",
        where="members.parquet",
        count=2,
        first=("m0", "m0"),
        by=lambda d: pq.write_table(
            pa.table({"member_id": ["m0", "m1", "m0"], "segment": [1, 2, 3]}), d / "members.parquet"
        ),
    ),
    Break(
        rule="unknown-title",
        where="artworks.parquet",
        first=("a9, title t9",),
        by=lambda d: pq.write_table(
            pa.concat_tables(
                [
                    pq.read_table(d / "artworks.parquet"),
                    pa.table({"artwork_id": ["a9"], "title_id": ["t9"], "image": ["images/a0.png"]}),
                ]
            ),
            d / "artworks.parquet",
        ),
    ),
    Break(
        rule="unknown-title",
        where="plays/part-0.parquet",
        first=("m0, title t9",),
        by=lambda d: put(d / "plays/part-0.parquet", 1, title_id="t9"),
    ),
    Break(rule="unknown-title", where=PART_1, first=("i6, title t\\n9",), by=shown(title_id="t\n9")),
    Break(rule="unknown-candidate", where=PART_1, first=("i6, candidate a9",), by=shown(candidates=["a0", "a9", "a2"])),
    Break(rule="foreign-candidate", where=PART_1, first=("i6, candidate a3",), by=shown(candidates=["a0", "a3", "a2"])),
    Break(rule="null-in-candidates", where=PART_1, first=("i6",), by=shown(candidates=["a0", None, "a2"])),
    Break(rule="shown-not-candidate", where=PART_1, first=("i6, artwork a3",), by=shown(artwork_id="a3")),
    Break(rule="no-candidates", where=PART_1, first=("i6",), by=shown(candidates=[], propensities=[])),
    Break(
        rule="duplicate-candidates",
        where=PART_1,
        first=("i6, candidates a0, a1, a0",),
        by=shown(candidates=["a0", "a1", "a0"]),
    ),
    Break(rule="row-range", where=PART_1, first=("i6, row -1",), by=shown(row=-1)),
    Break(
        rule="column-range",
        where=PART_1,
        first=("i4, column 1099511627783",),
        by=lambda d: [
            cast_column(d / PART_0, "column", pa.int64()),
            cast_column(d / PART_1, "column", pa.int64()),
            put(d / PART_1, 0, column=2**40 + 7),
        ],
    ),
    Break(rule="no-propensity", where=PART_1, first=("i6",), by=shown(propensities=None)),
    Break(
        rule="propensities-length", where=PART_1, first=("i6, 2 for 3 candidates",), by=shown(propensities=[0.5, 0.5])
    ),
    Break(
        rule="propensities-range",
        where=PART_1,
        first=("i6, [0.5, nan, 0.5]",),
        by=shown(propensities=[0.5, float("nan"), 0.5]),
    ),
    Break(
        rule="propensities-range",
        where=PART_1,
        first=("i6, [1.0, -0.5, 0.5]",),
        by=shown(propensities=[1.0, -0.5, 0.5]),
    ),
    Break(rule="propensities-range", where=PART_1, by=shown(propensities=[0.5, None, 0.5])),
    Break(
        rule="propensities-sum",
        where=PART_1,
        first=("i6, sum 0.93",),
        says="1 row whose propensities do not sum to 1 (first: i6, sum 0.93). Fix the export",
        by=shown(propensities=[0.33, 0.3, 0.3]),
    ),
    Break(
        rule="shown-propensity-zero", where=PART_1, first=("i6, artwork a0",), by=shown(propensities=[0.0, 0.5, 0.5])
    ),
    Break(
        rule="propensity-range",
        where=PART_0,
        count=3,
        first=("i0, propensity 0.0", "i2, propensity 1.5", "i3, propensity nan"),
        by=lambda d: (
            add(d / PART_0, "propensity", pa.array([0.0, None, 1.5, float("nan")], pa.float32())),
            add(d / PART_1, "propensity", pa.array([1 / 3, 0.5, None, 1e-6], pa.float32())),
            put(d / PART_1, 3, propensities=None),
        ),
    ),
    Break(
        rule="propensities-disagree",
        where=PART_0,
        first=("i1, propensities have 0.5",),
        by=lambda d: (
            add(d / PART_0, "propensity", pa.array([1 / 3, 0.4, None, 0.5], pa.float32())),
            add(d / PART_1, "propensity", pa.array([None] * 4, pa.float32())),
        ),
    ),
    Break(rule="engaged-without-click", where=PART_1, first=("i6",), by=shown(engaged=True)),
    *(
        Break(rule=rule, where=PART_1, first=(f"i4, {labelled}",), by=with_minutes(*values))
        for rule, labelled, values in (
            ("minutes-range", "minutes -1.0", (-1.0, None, float("nan"), 0.0)),
            ("minutes-range", "minutes 10001.0", (10_001.0, None, float("nan"), 0.0)),
            ("minutes-range", "minutes inf", (float("inf"), None, float("nan"), 0.0)),
        )
    ),
    Break(
        rule="minutes-without-click", where=PART_1, first=("i5, minutes 3.0",), by=with_minutes(90.0, 3.0, None, 0.0)
    ),
    Break(
        rule="future-time",
        where="plays/part-0.parquet",
        first=(f"m0, {FUTURE:%Y-%m-%d %H:%M:%S}+00",),
        by=lambda d: put(d / "plays/part-0.parquet", 0, played_at=FUTURE),
    ),
    Break(rule="future-time", where=PART_1, by=shown(shown_at=FUTURE)),
    Break(rule="ancient-time", where=PART_1, by=shown(shown_at=datetime.fromtimestamp(1_700_000, UTC))),
    Break(
        rule="ancient-time",
        where="plays/part-0.parquet",
        by=lambda d: put(d / "plays/part-0.parquet", 0, played_at=datetime(1970, 1, 1, tzinfo=UTC)),
    ),
    Break(
        rule="watched-range",
        where="plays/part-0.parquet",
        first=("m0, watched 87.0",),
        by=lambda d: put(d / "plays/part-0.parquet", 1, watched=87.0),
    ),
    Break(
        rule="rating-finite",
        where="plays/part-0.parquet",
        count=2,
        first=("m0, rating nan", "m0, rating inf"),
        by=lambda d: add(d / "plays/part-0.parquet", "rating", pa.array([float("nan"), float("inf"), 4.0])),
        says="2 rows whose rating is no finite number (first: m0, rating nan; m0, rating inf). Write null where a play is not",
    ),
)

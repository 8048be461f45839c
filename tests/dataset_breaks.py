"""Every way to break a small dataset, one rule at a time, and what `check` must say of it.

The dataset is that of `test_check.py`. Each case is a function that writes into the folder, with the rule, the table or
file, the count and the first offenders expected.
"""

import gzip
import os
import shutil
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from tests.dataset_edits import (
    PART_0,
    PART_1,
    Break,
    add,
    cast_column,
    cut,
    drop,
    put,
    rename,
    scribble,
    shown,
    with_embeddings,
)

FUTURE = datetime.now(UTC).replace(microsecond=0) + timedelta(days=400)
SCHEMA_BREAKS = (
    Break(rule="missing-table", where="titles.parquet", by=lambda d: (d / "titles.parquet").unlink()),
    Break(rule="missing-table", where="plays/", by=lambda d: (d / "plays/part-0.parquet").unlink()),
    Break(
        rule="empty-table",
        where="plays/",
        by=lambda d: pq.write_table(pq.read_table(d / "plays/part-0.parquet")[:0], d / "plays/part-0.parquet"),
    ),
    Break(rule="unreadable-file", where=PART_1, by=lambda d: cut(d / PART_1), says="cannot be read as Parquet"),
    Break(rule="unreadable-file", where=PART_1, by=lambda d: scribble(d / PART_1), says="cannot be read as Parquet"),
    Break(rule="unreadable-file", where=PART_1, by=lambda d: (d / PART_1).write_bytes(b"")),
    Break(rule="missing-column", where=PART_1, by=lambda d: drop(d / PART_1, "clicked"), says="column clicked is"),
    Break(
        rule="missing-column",
        where=f"{PART_0} and 1 more file",
        count=2,
        by=lambda d: [drop(d / part, "clicked") for part in (PART_0, PART_1)],
    ),
    Break(
        rule="missing-column",
        where="titles.parquet",
        by=lambda d: pq.write_table(
            pq.read_table(d / "titles.parquet").rename_columns(["title_id", "Name", "genres", "release_year"]),
            d / "titles.parquet",
        ),
        says="Rename Name to name.",
    ),
    *(
        Break(
            rule="misspelled-column",
            where=f"{table}.parquet",
            by=lambda d, table=table, column=column, values=values: add(d / f"{table}.parquet", column, values),
            says=f"Rename {column} to {name}.",
        )
        for table, column, name, values in (
            ("titles", "Cast", "cast", pa.array([["a"], []])),
            ("artworks", "Depicts", "depicts", pa.array([["a"]] * 5)),
            ("artworks", "EMBEDDING", "embedding", pa.array([[1.0]] * 5)),
        )
    ),
    *(
        Break(
            rule="misspelled-column",
            where=f"{PART_0} and 1 more file",
            count=2,
            by=lambda d, old=old, new=new: [rename(d / part, old, new) for part in (PART_0, PART_1)],
            says=f"Rename {new} to {old}.",
        )
        for old, new in (("engaged", "Engaged"), ("propensities", "Propensities"), ("propensities", "PROPENSITIES "))
    ),
    Break(
        rule="misspelled-column",
        where="plays/part-0.parquet",
        by=lambda d: rename(d / "plays/part-0.parquet", "watched", "Watched"),
        says="column watched is missing, and Watched is there. Rename Watched to watched.",
    ),
    Break(
        rule="missing-column",
        where=f"{PART_0} and 1 more file",
        count=2,
        by=lambda d: [rename(d / part, "shown_at", "shownAt") for part in (PART_0, PART_1)],
        says="Rename shownAt to shown_at.",
    ),
    Break(
        rule="partition-column",
        where="impressions/engaged=true/part-0.parquet",
        by=lambda d: [
            (d / "impressions/engaged=true").mkdir(),
            [drop(d / part, "engaged") for part in (PART_0, PART_1)],
            (d / PART_0).rename(d / "impressions/engaged=true/part-0.parquet"),
        ],
        says="its values are in names of folders alone, as engaged=true. Write engaged into the files too.",
    ),
    Break(
        rule="missing-table",
        where="titles.parquet",
        by=lambda d: [(d / "titles").mkdir(), (d / "titles.parquet").rename(d / "titles/part-0.parquet")],
        says="titles is there: call it titles.parquet.",
    ),
    Break(
        rule="ambiguous-column",
        where="titles.parquet",
        by=lambda d: add(d / "titles.parquet", "NAME", pa.array(["x", "y"])),
        says="duplicate column name",
    ),
    Break(
        rule="ambiguous-column",
        where=PART_1,
        by=lambda d: add(d / PART_1, "clicked", pa.array([True] * 4)),
        says="duplicate column clicked",
    ),
    Break(
        rule="reserved-column",
        where="plays/part-0.parquet",
        by=lambda d: add(d / "plays/part-0.parquet", "Keyart_File", pa.array(["x"] * 3)),
        says="Rename Keyart_File.",
    ),
    *(
        Break(
            rule="unread-file",
            where=f"impressions/{name}",
            by=lambda d, name=name: (d / PART_1).rename(d / "impressions" / name),
            says="holds Parquet, but is not read",
        )
        for name in ("part-1.pq", "part-00001", "part-1.parquet.tmp", "part-1.parquet.gz")
    ),
    Break(
        rule="unread-file",
        where="impressions/part-2.parquet.gz",
        by=lambda d: (d / "impressions/part-2.parquet.gz").write_bytes(gzip.compress((d / PART_1).read_bytes())),
    ),
    Break(
        rule="unread-file",
        where="impressions/more/part-1.pq",
        by=lambda d: (
            (d / "elsewhere").mkdir(),
            (d / PART_1).rename(d / "elsewhere/part-1.pq"),
            (d / "impressions/more").symlink_to(d / "elsewhere"),
        ),
    ),
    Break(
        rule="unread-file",
        where="plays/part-0",
        by=lambda d: (d / "plays/part-0.parquet").rename(d / "plays/part-0"),
        says="Let its name end so",
    ),
    Break(
        rule="missing-table",
        where="titles.parquet",
        by=lambda d: (d / "titles.parquet").rename(d / "Titles.parquet"),
        says="Titles.parquet is there: call it titles.parquet.",
    ),
    Break(
        rule="missing-table",
        where="plays/",
        by=lambda d: [(d / "plays/part-0.parquet").rename(d / "plays.csv"), (d / "plays").rmdir()],
        says="plays.csv is there: move it into plays/, with a name that ends in .parquet.",
    ),
    Break(
        rule="missing-table",
        where="plays/",
        by=lambda d: [shutil.rmtree(d / "plays"), (d / "plays.csv").write_text("member_id,title_id")],
        says="plays.csv is there, and is not Parquet: keyart import writes the table.",
    ),
    Break(
        rule="missing-table",
        where="titles.parquet",
        by=lambda d: (d / "titles.parquet").rename(d / "titles.pq"),
        says="titles.pq is there: call it titles.parquet.",
    ),
    Break(
        rule="missing-table",
        where="members.parquet",
        by=lambda d: (d / "members.csv").write_text("member_id"),
        says="members.csv is there, and is not Parquet: keyart import writes the table.",
    ),
    Break(
        rule="missing-table",
        where="members.parquet",
        by=lambda d: pq.write_table(pa.table({"member_id": ["m0"]}), d / "Members.parquet"),
        says="Members.parquet is there: call it members.parquet.",
    ),
    Break(rule="unreadable-file", where="plays/pipe.parquet", by=lambda d: os.mkfifo(d / "plays/pipe.parquet")),
    Break(
        rule="unreadable-file",
        where="plays/p\\udcff.parquet",
        by=lambda d: (d / "plays/part-0.parquet").rename(d / "plays/p\udcff.parquet"),
        says="has a name that is not UTF-8",
    ),
    Break(
        rule="wrong-type",
        where=PART_1,
        by=lambda d: cast_column(d / PART_1, "row", pa.float64()),
        says="column row has type double. Write row as an integer of any width.",
    ),
    Break(
        rule="wrong-type",
        where="plays/part-0.parquet",
        by=lambda d: cast_column(d / "plays/part-0.parquet", "watched", pa.int32()),
        says="Write watched as float or double, or leave the column out.",
    ),
    Break(
        rule="wrong-type",
        where="artworks.parquet",
        by=lambda d: add(d / "artworks.parquet", "depicts", pa.array([[1]] * 5)),
        says="has type list of int64. Write depicts as list of string",
    ),
    Break(
        rule="timestamp-without-zone",
        where=PART_1,
        by=lambda d: cast_column(d / PART_1, "shown_at", pa.timestamp("us")),
        says="Write shown_at in UTC and mark it so",
    ),
    Break(
        rule="schema-mismatch",
        where=PART_1,
        by=lambda d: cast_column(d / PART_1, "column", pa.int32()),
        says="column column has type int32, in part-0.parquet it has type int16",
    ),
    Break(rule="schema-mismatch", where=PART_1, by=lambda d: drop(d / PART_1, "engaged"), says="has no column engaged"),
    Break(
        rule="wrong-type",
        where="artworks.parquet",
        by=lambda d: add(d / "artworks.parquet", "embedding", pa.array([[1, 2]] * 5)),
        says="has type list of int64. Write embedding as list of float or double, or leave the column out.",
    ),
    Break(
        rule="no-image-column",
        where="artworks.parquet",
        by=lambda d: drop(d / "artworks.parquet", "image"),
        says="has neither image nor embedding. Add image",
    ),
    Break(
        rule="no-propensity-column",
        where=f"{PART_0} and 1 more file",
        count=2,
        by=lambda d: [drop(d / part, "propensities") for part in (PART_0, PART_1)],
    ),
)
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
)

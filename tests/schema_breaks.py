"""Every way to break the files and columns of a small dataset, one rule at a time, and what `check` must say of it.

The dataset is that of `test_check.py`. Each case is a function that writes into the folder, with the rule, the table or
file, the count and the first offenders expected.
"""

import gzip
import os
import shutil

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
    rename,
    scribble,
)

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
        by=lambda d: [shutil.rmtree(d / "plays"), (d / "plays.csv").write_text("member_id,title_id", encoding="utf-8")],
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
        by=lambda d: (d / "members.csv").write_text("member_id", encoding="utf-8"),
        says="members.csv is there, and is not Parquet: keyart import writes the table.",
    ),
    Break(
        rule="missing-table",
        where="members.parquet",
        by=lambda d: pq.write_table(pa.table({"member_id": ["m0"]}), d / "Members.parquet"),
        says="Members.parquet is there: call it members.parquet.",
    ),
    *(
        Break(
            rule="unread-file",
            where=f"impressions/{name}",
            by=lambda d, name=name: (d / "impressions" / name).write_bytes(b"no Parquet"),
            says="is not Parquet, and is not read, though it may hold rows of the table. Import it",
        )
        for name in ("part-2.csv", "part-2.JSON.gz", "part-2.orc", "part-2.pq", "day=1.csv")
    ),
    Break(
        rule="missing-table",
        where="plays/",
        by=lambda d: [(d / "plays/part-0.parquet").unlink(), (d / "plays/a.csv").write_bytes(b"member_id")],
        says="a.csv is there, and is not Parquet: keyart import writes the table.",
    ),
    Break(
        rule="unreadable-file",
        where="members.parquet",
        by=lambda d: os.mkfifo(d / "members.parquet"),
        says="is no regular file",
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
    *(
        Break(
            rule="wrong-type",
            where=f"{PART_0} and 1 more file",
            count=2,
            by=lambda d, column=column, values=values: [
                (drop(d / part, column), add(d / part, column, values)) for part in (PART_0, PART_1)
            ],
            says=f"Write {column} as ",
        )
        for column, values in (
            ("impression_id", pa.array([1.0, 2.0, 3.0, 4.0])),
            ("impression_id", pa.array([1, 2, 3, 4], pa.decimal128(10, 0))),
            ("impression_id", pa.array([1, 2, 3, 4], pa.timestamp("us"))),
            ("impression_id", pa.array([b"0123456789abcdef"] * 4, pa.binary(16))),
            ("impression_id", pa.array([b"a", b"b", b"c", b"d"])),
            ("candidates", pa.array([[{"id": "a0"}]] * 4)),
            ("candidates", pa.array([[("a0", 1.0)]] * 4, pa.map_(pa.string(), pa.float32()))),
            ("candidates", pa.array([[b"a0"]] * 4)),
            ("propensities", pa.array([[1.0]] * 4, pa.list_(pa.float16()))),
            ("clicked", pa.array([1, 0, 0, 0], pa.int8())),
            ("country", pa.array([49] * 4)),
            ("shown_at", pa.array([0] * 4, pa.date32())),
        )
    ),
    Break(
        rule="wrong-type",
        where="plays/part-0.parquet",
        by=lambda d: cast_column(d / "plays/part-0.parquet", "watched", pa.int32()),
        says="Write watched as float or double, or leave the column out.",
    ),
    Break(
        rule="wrong-type",
        where="plays/part-0.parquet",
        by=lambda d: add(d / "plays/part-0.parquet", "rating", pa.array(["5", "PG-13", None])),
        says="Write rating as a float, an integer",
    ),
    Break(
        rule="schema-mismatch",
        where="plays/part-1.parquet",
        by=lambda d: (
            shutil.copy(d / "plays/part-0.parquet", d / "plays/part-1.parquet"),
            add(d / "plays/part-1.parquet", "rating", pa.array([1.0, -1.0, None])),
        ),
        says="has a column rating, part-0.parquet has none",
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

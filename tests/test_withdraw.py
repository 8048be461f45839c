"""Titles and artworks that are taken out of a bundle are unknown everywhere, and nothing else moves by a bit."""

import json
import os
import re
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import keyart
from foundation.errors import UserError
from serving.bundle.bundle import (
    CARD,
    CATALOGUE,
    EXPLAIN_TABLES,
    GOLDEN,
    GOLDEN_GRAPHS,
    IMAGE_HASHES,
    POSTERIOR,
    TITLE_VECTORS,
    VOCABULARIES,
    Bundle,
)
from serving.bundle.example import run_graph, to_arrays
from serving.bundle.golden import UNKNOWN_ID
from serving.bundle.refresh import refresh
from serving.bundle.verify import verify
from serving.bundle.withdrawal import withdrawn_rows

TITLE, ARTWORK = 3, 20
"""Indices of the withdrawn ones in the vocabularies."""


@pytest.fixture(scope="module")
def withdrawn(bundle: Path, grown: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str]]:
    """The bundle without a title, its artworks and one artwork more, in one step with a refresh; the ids taken out."""
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("withdrawn") / "bundle")
    words = Bundle.open(bundle).vocabularies
    owner = json.loads((bundle / CATALOGUE).read_text(encoding="utf-8"))["title"]
    title, artwork = words["titles"].values[TITLE], words["artworks"].values[ARTWORK]
    artworks = {words["artworks"].values[index] for index, row in enumerate(owner) if row == TITLE + 1} | {artwork}
    console = Console(record=True, width=1000, file=StringIO())
    result = refresh(folder, grown, console, f"{title},{artwork}")
    assert (result.titles, result.artworks) == (2, 3)
    assert (result.withdrawn_titles, result.withdrawn_artworks) == (1, len(artworks)) >= (1, 2)
    said = console.export_text()
    assert f"1 withdrawn titles are still in {grown}/titles.parquet (first: {title})" in said
    assert f"{len(artworks)} withdrawn artworks are still in" in said
    assert not re.search("have another", said), "nothing of the catalogue has changed"
    return folder, {title}, artworks


def test_they_are_in_no_file(withdrawn: tuple[Path, set[str], set[str]]) -> None:
    folder, titles, artworks = withdrawn
    assert verify(folder).digest == Bundle.open(folder).digest
    for name in (VOCABULARIES, GOLDEN, GOLDEN_GRAPHS):
        text = (folder / name).read_text(encoding="utf-8")
        assert not [one for one in titles | artworks if json.dumps(one) in text], name
    for path in folder.rglob("*.onnx"):
        content = path.read_bytes()
        assert not [one for one in titles | artworks if one.encode() in re.findall(rb"[\w-]+", content)], path
    assert "1 and" in (folder / CARD).read_text("utf-8")


def test_all_others_keep_their_rows(bundle: Path, refreshed: Path, withdrawn: tuple[Path, set[str], set[str]]) -> None:
    """As in a bundle that was refreshed without taking any out, row by row of every table."""
    folder, _, _ = withdrawn
    before, after = Bundle.open(refreshed).vocabularies, Bundle.open(folder).vocabularies
    kept = {
        name: np.array([0, *(before[name].row(value) for value in after[name].values)])
        for name in ("titles", "artworks")
    }
    for file in (EXPLAIN_TABLES, POSTERIOR, TITLE_VECTORS):
        old, new = load_file(refreshed / file), load_file(folder / file)
        for name, values in old.items():
            kind = "artworks" if name.startswith("artwork") or name == "own" else "titles"
            expected = values if name == "spread" else values[kept[kind]]
            if name == "artwork_title":  # row by row, by the titles' names
                names = [["", *words["titles"].values] for words in (before, after)]
                kept_names = [names[0][row] if names[0][row] in names[1] else "" for row in expected]
                assert [names[1][row] for row in new[name]] == kept_names
                continue
            np.testing.assert_array_equal(new[name], expected, err_msg=name)
    for file, kind in ((IMAGE_HASHES, "artworks"), (CATALOGUE, None)):
        old, new = (json.loads((folder_of / file).read_text(encoding="utf-8")) for folder_of in (refreshed, folder))
        if kind:
            assert new == [old[row - 1] for row in kept[kind][1:]]
        else:
            assert new["genres"] == [old["genres"][row - 1] for row in kept["titles"][1:]]
            assert new["people"] == [old["people"][row - 1] for row in kept["artworks"][1:]]
            names = [["", *words["titles"].values] for words in (before, after)]
            for index, row in enumerate(kept["artworks"][1:]):
                assert names[1][new["title"][index]] == names[0][old["title"][row - 1]]
    assert after["titles"].trained == before["titles"].trained - 1


def test_answers_are_those_of_unknown_ids(refreshed: Path, withdrawn: tuple[Path, set[str], set[str]]) -> None:
    """To the bit: a request that names a withdrawn id is one that names an id that nobody knows; all others are as before."""
    folder, titles, artworks = withdrawn
    record = Bundle.open(folder).metadata
    dtypes = {part["name"]: part["dtype"] for part in record["graphs"]["rank.onnx"]["inputs"]}
    gone, touched = titles | artworks, 0
    sessions = {folder_of: ort.InferenceSession(folder_of / "rank.onnx") for folder_of in (refreshed, folder)}
    for line in (refreshed / GOLDEN).read_text("utf-8").strip("\n").split("\n")[::3]:
        given = to_arrays(json.loads(line)["request"], dtypes)
        unknown = {
            name: np.where(np.isin(values, list(gone)), UNKNOWN_ID, values) if values.dtype == object else values
            for name, values in given.items()
        }
        touched += any(
            not np.array_equal(given[name], unknown[name]) for name in ("title", "artworks", "history_title")
        )
        expected = run_graph(sessions[refreshed], unknown)
        for name, values in run_graph(sessions[folder], given).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert touched > 5
    session = ort.InferenceSession(folder / "titles.onnx")
    query = np.ones((1, session.get_inputs()[0].shape[1]), np.float32)
    listed = session.run(
        ["titles"], {"title_query": query, "played": np.array([[""]], object), "top": np.array([999])}
    )[0]
    assert set(np.asarray(listed)[0]) - {""} == set(Bundle.open(folder).vocabularies["titles"].values)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nobody,{title},no one", "withdraw: the bundle has no nobody, no one. Nothing was changed"),
        (" , ", "holds no id. Give ids with commas, or a file with one a line."),
        ("artwork:{title}", "withdraw: the bundle has no artwork:{title}."),
        ("{all}", "withdraw: no titles would be left."),
        ("a\n" * 3000, "the bundle has no a"),
    ],
)
def test_ids_that_cannot_be_withdrawn(
    bundle: Path, grown: Path, tmp_path: Path, given: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link)
    titles = Bundle.open(bundle).vocabularies["titles"].values
    names = {"title": titles[0], "all": ",".join(titles)}
    assert keyart.main(["refresh", str(folder), str(grown), "--withdraw", given.format(**names)]) == 1
    line = capfd.readouterr().err
    assert said.format(**names) in line
    assert line.count("\n") == 1
    assert Bundle.open(folder).digest == Bundle.open(bundle).digest


def test_ids_in_a_file(bundle: Path, tmp_path: Path) -> None:
    words = Bundle.open(bundle).vocabularies
    content = json.loads((bundle / CATALOGUE).read_text(encoding="utf-8"))
    title, artwork = words["titles"].values[TITLE], words["artworks"].values[ARTWORK]
    (tmp_path / "ids").write_text(f"title:{title}\n\n {artwork} \n{artwork}\n", encoding="utf-8")
    by_file = withdrawn_rows(str(tmp_path / "ids"), words, content)
    assert by_file["titles"].tolist() == [TITLE + 1]
    assert ARTWORK + 1 in by_file["artworks"]
    assert set(by_file["artworks"].tolist()) == {
        ARTWORK + 1,
        *(row for row, owner in enumerate(content["title"], 1) if owner == TITLE + 1),
    }
    (tmp_path / "ids").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"cannot be read .* Write one id a line, in UTF-8"):
        withdrawn_rows(str(tmp_path / "ids"), words, content)
    assert [rows.tolist() for rows in withdrawn_rows(None, words, content).values()] == [[], []]


def test_a_changed_catalogue_is_named(bundle: Path, service: Path, tmp_path: Path) -> None:
    """Genres, cast, year, what artworks depict and whose they are, as images: vectors stay as they were."""
    own = shutil.copytree(service, tmp_path / "service", ignore=shutil.ignore_patterns("impressions", "plays", "truth"))
    folder = shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link)

    def said() -> str:
        console = Console(record=True, width=1000, file=StringIO())
        assert refresh(folder, own, console).digest == Bundle.open(bundle).digest
        return console.export_text()

    assert "have another" not in said()
    titles, artworks = (pq.read_table(own / f"{name}.parquet") for name in ("titles", "artworks"))
    rows, shown = titles.to_pylist(), artworks.to_pylist()
    first, second, third = (row["title_id"] for row in rows[:3])
    rows[0]["genres"] = sorted({genre for row in rows for genre in row["genres"]} - {*rows[0]["genres"]})[:2]
    rows[1]["cast"] = rows[4]["cast"][::-1] + rows[1]["cast"][:1]
    rows[2]["release_year"] = 1931
    shown[0]["depicts"] = [*rows[5]["cast"][:2], rows[0]["genres"][0]]
    shown[1]["title_id"] = next(row["title_id"] for row in rows if row["title_id"] != shown[1]["title_id"])
    for name, table, changed in (("titles", titles, rows), ("artworks", artworks, shown)):
        pq.write_table(pa.Table.from_pylist(changed, table.schema), own / f"{name}.parquet")
    words = said()
    for field, value in (("titles have another genres", first), ("titles have another cast", second)):
        assert f"1 {field} than they were encoded from (first: {value})" in words
    assert f"1 titles have another release_year than they were encoded from (first: {third})" in words
    for column in ("depicts (people)", "depicts (genres)"):
        assert (
            f"1 artworks have another {column} than they were encoded from (first: {shown[0]['artwork_id']})" in words
        )
    assert f"1 artworks have another title_id than they were encoded from (first: {shown[1]['artwork_id']})" in words

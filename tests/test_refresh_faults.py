"""What a refresh cannot use is refused with nothing lost, and what is odd is taken as the towers take it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

import keyart
from export.export import random_requests
from foundation.errors import UserError
from serving.bundle.bundle import ARTWORK_GRAPH, BUNDLE_FILE, EXPLAIN_TABLES, Bundle
from serving.bundle.refresh import refresh as refresh_bundle
from serving.bundle.seal import write_record
from serving.bundle.verify import verify
from serving.scoring.explain import total
from tests.grown_catalogue import NEW_ARTWORKS

QUIET = Console(quiet=True)


def test_another_image_under_an_old_id_is_reported(
    refreshed: Path, grown: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(grown, tmp_path / "changed")
    Image.new("RGB", (30, 40), (255, 0, 0)).save(changed / "images" / "dot.jpg")
    assert keyart.main(["refresh", str(refreshed), str(changed)]) == 0
    printed = " ".join(capfd.readouterr().err.split())
    assert "1 artworks have another image than they were embedded from (first: aa face)" in printed


def broken_image(folder: Path) -> str:
    (folder / "images" / "dot.jpg").write_bytes((folder / "images" / "grey.png").read_bytes()[:200])
    return "1 new artworks have images that cannot be used (first: aa face: unreadable-image"


def lost_image(folder: Path) -> str:
    (folder / "images" / "dot.jpg").unlink()
    return "first: aa face: missing-image"


def unknown_title(folder: Path) -> str:
    table = pq.read_table(folder / "artworks.parquet")
    rows = [row | {"title_id": "no such"} if row["artwork_id"] == "aa face" else row for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "artworks.parquet")
    return "no such"


def no_titles(folder: Path) -> str:
    (folder / "titles.parquet").unlink()
    return "titles.parquet: the table is missing"


@pytest.mark.parametrize("spoil", [broken_image, lost_image, unknown_title, no_titles])
def test_what_cannot_be_used_loses_nothing(
    bundle: Path, grown: Path, tmp_path: Path, spoil, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, dataset = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "dataset")
    message = spoil(dataset)
    assert keyart.main(["refresh", str(folder), str(dataset)]) == 1
    printed = " ".join(capfd.readouterr().err.split())
    assert message in printed
    assert "Traceback" not in printed
    assert verify(folder) == verify(bundle)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_bundle_without_an_image_encoder_says_so(bundle: Path, grown: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    record = json.loads((folder / BUNDLE_FILE).read_text(encoding="utf-8"))
    (folder / ARTWORK_GRAPH).unlink()
    del record["sha256"][ARTWORK_GRAPH]
    write_record(folder, record)
    with pytest.raises(UserError, match=r"bundle\.json: has no checksum of artwork\.onnx\. Export the run again\."):
        refresh_bundle(folder, grown, QUIET)


def test_the_people_an_artwork_shows_are_those_that_count(bundle: Path, grown: Path, tmp_path: Path) -> None:
    """Twenty are depicted: explanations and the tower agree on which ones."""
    folder, dataset = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "dataset")
    people = Bundle.open(bundle).vocabularies["people"].values
    table = pq.read_table(dataset / "artworks.parquet")
    rows = [
        row | {"depicts": (people * 3)[:20]} if row["artwork_id"] == NEW_ARTWORKS[0] else row
        for row in table.to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), dataset / "artworks.parquet")
    refresh_bundle(folder, dataset, QUIET)
    opened = Bundle.open(folder)
    request = random_requests(opened.vocabularies, opened.context, opened.history_length, 50, 20, 4, seed=3)
    request["artworks"][:, 0] = opened.vocabularies["artworks"].row(NEW_ARTWORKS[0])
    terms = opened.explain(request)
    np.testing.assert_allclose(total(terms), terms["appeal"], atol=1e-4)
    np.testing.assert_allclose(terms["by_person"].sum(-1), terms["by_people"].sum(1), atol=1e-4)


def test_words_that_are_empty_are_no_words(bundle: Path, grown: Path, tmp_path: Path) -> None:
    """What "".split(",") gives: neither a genre nor a person, and padding stays padding."""
    folder, dataset = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "dataset")
    for name, column in (("titles", "cast"), ("artworks", "depicts")):
        table = pq.read_table(dataset / f"{name}.parquet")
        rows = [row | {column: ["", *(row[column] or []), ""]} for row in table.to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, table.schema), dataset / f"{name}.parquet")
    refresh_bundle(folder, dataset, QUIET)
    plain = shutil.copytree(bundle, tmp_path / "plain")
    refresh_bundle(plain, grown, QUIET)
    one, other = load_file(plain / EXPLAIN_TABLES), load_file(folder / EXPLAIN_TABLES)
    for table, values in one.items():
        np.testing.assert_allclose(other[table], values, atol=1e-6, err_msg=table)


def test_ids_that_hold_line_ends_of_unicode(bundle: Path, grown: Path, tmp_path: Path) -> None:
    folder, dataset = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "dataset")
    strange = 'new\u2028of\u0085"old"'
    table = pq.read_table(dataset / "artworks.parquet")
    rows = [row | {"artwork_id": strange} if row["artwork_id"] == NEW_ARTWORKS[1] else row for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), dataset / "artworks.parquet")
    refresh_bundle(folder, dataset, QUIET)
    verify(folder)
    assert strange in Bundle.open(folder).vocabularies["artworks"].values


def test_an_image_too_large_is_refused_as_check_refuses_it(
    bundle: Path, grown: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, dataset = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "dataset")
    Image.new("1", (9500, 9500)).save(dataset / "images" / "dot.jpg", "PNG")
    assert keyart.main(["refresh", str(folder), str(dataset)]) == 1
    assert "first: aa face: unreadable-image" in " ".join(capfd.readouterr().err.split())

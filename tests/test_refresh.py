"""What the catalogue gained is in the bundle, as torch would have placed it; and nothing that was there has moved."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from rich.console import Console
from safetensors.numpy import load_file

import keyart
from datamodules.artworks import content_hashes, load_images
from datamodules.catalogue import build_catalogue
from datamodules.contract import UserError
from export.bundle import ABOUT, ARTWORK, GOLDEN, IMAGES, TABLES, Bundle
from export.bundle import TITLES as TITLE_VECTORS
from export.explain import Explainer, total
from export.export import random_requests
from export.refresh import Refreshed
from export.refresh import refresh as refresh_bundle
from export.vector_parity import APART
from export.verify import verify
from models.parts import Content
from models.ranking import INPUTS, OUTPUTS, Ranking
from models.two_tower import TwoTower
from train.embed import load_encoder
from train.run import Run

QUIET = Console(quiet=True)
NEW_TITLES, NEW_ARTWORKS = ("aa new", "zz new"), ("aa face", "mm new of old", "zz couple")
"""Ids that sort before and behind those there are."""


@pytest.fixture(scope="module")
def grown(service: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service's catalogue, without its log, with two titles and three artworks more; two of the images odd ones."""
    out = tmp_path_factory.mktemp("grown") / "dataset"
    out.mkdir()
    shutil.copytree(service / "images", out / "images")
    titles, artworks = (pq.read_table(service / f"{name}.parquet") for name in ("titles", "artworks"))
    like, shown = titles.to_pylist()[:2], artworks.to_pylist()
    more = [
        like[0] | {"title_id": NEW_TITLES[0]},
        like[1] | {"title_id": NEW_TITLES[1], "genres": [], "release_year": None},
    ]
    more[1]["cast"] = [*(like[0]["cast"] or []), "nobody has heard of her"]
    pictures = [Image.new("CMYK", (1, 1), (10, 200, 30, 0)), Image.open(service / shown[3]["image"]).resize((201, 333))]
    pictures[0].save(out / "images" / "dot.jpg")
    pictures[1].convert("LA").save(out / "images" / "grey.png")
    faces = [
        {
            "artwork_id": NEW_ARTWORKS[0],
            "title_id": NEW_TITLES[0],
            "image": "images/dot.jpg",
            "depicts": shown[0]["depicts"],
        },
        {"artwork_id": NEW_ARTWORKS[1], "title_id": like[1]["title_id"], "image": shown[5]["image"], "depicts": None},
        {
            "artwork_id": NEW_ARTWORKS[2],
            "title_id": NEW_TITLES[0],
            "image": "images/grey.png",
            "depicts": ["romance", "a dog"],
        },
    ]
    for name, table, rows in (("titles", titles, more), ("artworks", artworks, faces)):
        added = pa.Table.from_pylist(rows, table.schema)
        pq.write_table(pa.concat_tables([added.slice(0, 1), table, added.slice(1)]), out / f"{name}.parquet")
    return out


@pytest.fixture(scope="module")
def refreshed(bundle: Path, grown: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(bundle, tmp_path_factory.mktemp("refreshed") / "bundle")
    assert refresh_bundle(folder, grown, QUIET) == Refreshed(2, 3)
    return folder


def by_torch(run: Path, grown: Path, opened: Bundle) -> Ranking:
    """The trained model over the grown catalogue, as training's own code would have built it."""
    trained, words = Run.open(run), opened.vocabularies
    titles, artworks = (pq.read_table(grown / f"{name}.parquet") for name in ("titles", "artworks"))
    catalogue = build_catalogue(titles, artworks, words)
    image_of = dict(zip(artworks["artwork_id"].to_pylist(), artworks["image"].to_pylist(), strict=True))
    encoder, projection = load_encoder(run)
    new = [grown / image_of[one] for one in words["artworks"].values[-len(NEW_ARTWORKS) :]]
    with torch.no_grad():
        embedding = projection(encoder(torch.from_numpy(load_images(new))))
    old = trained.model.state_dict()
    parts = {
        name: torch.from_numpy(getattr(catalogue, name.rsplit("_", 1)[0]))
        for name in Content._fields
        if "image" not in name
    }
    content = Content(
        **{name: value if name == "title_year_I" else value.long() for name, value in parts.items()},
        artwork_image_AE=torch.cat([old["artwork_image_AE"], embedding]),
    )
    model = TwoTower(trained.model.config, trained.model.sizes, content)
    model.load_state_dict({name: value for name, value in old.items() if name not in Content._fields}, strict=False)
    return Ranking(model.eval())


def test_what_is_new_is_placed_as_torch_places_it(run: Path, grown: Path, refreshed: Path) -> None:
    opened = Bundle.open(refreshed)
    ranking = by_torch(run, grown, opened)
    words = opened.vocabularies
    assert words["titles"].values[-2:] == list(NEW_TITLES)
    assert words["artworks"].values[-3:] == list(NEW_ARTWORKS)
    tables = opened.tables
    for name in ("artwork_vector", "artwork_content", "artwork_bias", "play_content", "play_mean_image", "mean_vector"):
        ours, torchs = tables[name], getattr(ranking, name).numpy()
        assert ours.shape == torchs.shape, name
        new = -3 if name.startswith("artwork") else -2
        np.testing.assert_allclose(ours[new:], torchs[new:], atol=2e-3, err_msg=name)
    found = load_file(refreshed / TITLE_VECTORS)["title_vector"]
    with torch.no_grad():
        expected = ranking.model.title_vectors(torch.arange(len(words["titles"]))).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # requests of what is new: title, history and candidates among them
    request = random_requests(words, opened.history_length, 60, 20, 5, seed=4)
    old_titles, old_artworks = len(words["titles"]) - 2, len(words["artworks"]) - 3
    chance = np.random.default_rng(1)
    request["title"] = old_titles + chance.integers(0, 2, 60)
    request["history_title"][:, ::3] = old_titles + chance.integers(0, 2, request["history_title"][:, ::3].shape)
    request["artworks"][:, :2] = old_artworks + chance.integers(0, 3, (60, 2))
    with torch.no_grad():
        told = dict(zip(OUTPUTS, ranking(*(torch.from_numpy(request[name]) for name in INPUTS)), strict=True))
    answer = opened.rank(request)
    for name in ("click_probability", "engaged_probability"):  # a pixel on the edge of a bin may fall to either side
        apart = np.abs(answer[name] - told[name].numpy())
        assert apart.max() < APART, name
        assert np.median(apart) < 1e-5, name


def test_no_vector_that_was_there_moved(bundle: Path, refreshed: Path) -> None:
    def tables_of(folder: Path, name: str) -> dict[str, np.ndarray]:
        return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(folder / name)).graph.initializer}

    grew = set()
    for name in json.loads((bundle / ABOUT).read_text())["graphs"]:
        before, after = tables_of(bundle, name), tables_of(refreshed, name)
        assert before.keys() == after.keys()
        for table, values in before.items():
            if values.shape == after[table].shape:
                assert table == "count" or np.array_equal(values, after[table], equal_nan=True), (name, table)
            else:
                grew.add((name, table))
                cut = tuple(slice(0, length) for length in values.shape)
                np.testing.assert_array_equal(values, after[table][cut], err_msg=f"{name} {table}")
    assert {name for name, _ in grew} >= {"rank.onnx", "member.onnx", "choose.onnx", "titles.onnx", "explore.onnx"}
    kinds = {"artwork_vector", "artwork_content", "artwork_bias", "artwork_engaged", "artwork_image", "artwork_own"}
    kinds |= {"play_content", "play_mean_image", "play_together", "play_token", "title_vectors"}
    kinds |= {
        f"{of}_{part}" for of in ("title", "mean") for part in ("vector", "content", "bias", "engaged", "together")
    }
    assert {table for _, table in grew} <= kinds
    for file in (TABLES, TITLE_VECTORS, "posterior.safetensors"):
        after = load_file(refreshed / file)
        for table, values in load_file(bundle / file).items():
            cut = tuple(slice(0, length) for length in values.shape)
            np.testing.assert_array_equal(values, after[table][cut], err_msg=table)


def test_old_requests_get_the_same_answers_to_the_bit(bundle: Path, refreshed: Path) -> None:
    before, after = Bundle.open(bundle), Bundle.open(refreshed)
    request = random_requests(before.vocabularies, before.history_length, 100, 30, 7, seed=8)
    one, other = before.rank(request), after.rank(request)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_new_ids_are_known_everywhere(bundle: Path, refreshed: Path) -> None:
    """In golden cases, which verify asks by ids; by titles.onnx; and in the record."""
    old, new = ((folder / GOLDEN).read_text().splitlines() for folder in (bundle, refreshed))
    assert new[: len(old)] == old
    assert len(new) > len(old)
    assert all(word in "".join(new[len(old) :]) for word in (*NEW_TITLES, *NEW_ARTWORKS))
    found = verify(refreshed)
    assert found.cases == len(new)
    session = ort.InferenceSession(refreshed / "titles.onnx")
    wide = session.get_inputs()[0].shape[1]
    asked = {
        "titles_member": np.ones((1, wide), np.float32),
        "played": np.array([[""]], object),
        "top": np.array([1000]),
    }
    listed = np.asarray(session.run(["titles"], asked)[0])
    assert set(NEW_TITLES) <= set(listed[0].tolist())
    record = json.loads((refreshed / ABOUT).read_text())
    assert [(one["titles"], one["artworks"]) for one in record["refreshed"]] == [(2, 3)]
    assert len(json.loads((refreshed / IMAGES).read_text())) == len(
        Bundle.open(refreshed).vocabularies["artworks"].values
    )


def test_nothing_new_changes_nothing(refreshed: Path, grown: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in refreshed.iterdir()}
    assert keyart.main(["refresh", str(refreshed), str(grown)]) == 0
    assert "has every title and artwork" in capfd.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in refreshed.iterdir()}


def test_another_image_under_an_old_id_is_told(
    refreshed: Path, grown: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changed = shutil.copytree(grown, tmp_path / "changed")
    Image.new("RGB", (30, 40), (255, 0, 0)).save(changed / "images" / "dot.jpg")
    assert keyart.main(["refresh", str(refreshed), str(changed)]) == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "1 artworks have another image than they were embedded from (first: aa face)" in told


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
    said = spoil(dataset)
    assert keyart.main(["refresh", str(folder), str(dataset)]) == 1
    told = " ".join(capfd.readouterr().err.split())
    assert said in told
    assert "Traceback" not in told
    assert verify(folder) == verify(bundle)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_bundle_without_an_image_encoder_says_so(bundle: Path, grown: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    record = json.loads((folder / ABOUT).read_text())
    (folder / ARTWORK).unlink()
    del record["sha256"][ARTWORK]
    (folder / ABOUT).write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"artwork\.onnx: is not there"):
        refresh_bundle(folder, grown, QUIET)


def test_an_image_of_any_size_and_mode_is_read_as_training_reads_it(
    bundle: Path, service: Path, run: Path, tmp_path: Path
) -> None:
    """Decoded pixels into artwork.onnx, the file into the training's own encoder."""
    session = ort.InferenceSession(bundle / ARTWORK)
    encoder, projection = load_encoder(run)
    first = Image.open(service / pq.read_table(service / "artworks.parquet")["image"][0].as_py()).convert("RGB")
    for name, image in {
        "large.png": first.resize((611, 803), Image.Resampling.BICUBIC),
        "small.png": first.resize((2, 3)),
        "grey.png": first.convert("L"),
        "alpha.png": first.convert("RGBA"),
    }.items():
        image.save(tmp_path / name)
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        given = {"image": pixels[None], "depicts": np.array([[""]], object)}
        found = np.asarray(session.run(["image_embedding"], given)[0])[0]
        with torch.no_grad():
            expected = projection(encoder(torch.from_numpy(load_images([tmp_path / name]))))[0].numpy()
        # a pixel on the edge of a bin may fall to either side
        assert np.median(np.abs(found - expected)) < 2e-3, name
        np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max(), err_msg=name)


def test_images_are_known_by_their_bytes(bundle: Path, service: Path) -> None:
    table = pq.read_table(service / "artworks.parquet")
    image_of = dict(zip(table["artwork_id"].to_pylist(), table["image"].to_pylist(), strict=True))
    paths = [service / image_of[one] for one in Bundle.open(bundle).vocabularies["artworks"].values]
    assert json.loads((bundle / IMAGES).read_text()) == content_hashes(paths)


def test_a_new_artwork_is_ranked_at_once_by_its_vectors(bundle: Path, refreshed: Path, grown: Path) -> None:
    """artwork.onnx and choose_vectors.onnx of the old bundle, as choose.onnx of the refreshed one by its id."""
    table = pq.read_table(grown / "artworks.parquet").to_pylist()
    row = next(one for one in table if one["artwork_id"] == NEW_ARTWORKS[1])  # of a title that the old bundle knows
    pixels = np.asarray(Image.open(grown / row["image"]).convert("RGB"))
    artwork = ort.InferenceSession(bundle / ARTWORK)
    outputs = ["artwork_vector", "artwork_content", "artwork_bias", "artwork_engaged"]
    found = artwork.run(outputs, {"image": pixels[None], "depicts": np.array([[""]], object)})
    vectors = {name: np.asarray(values)[:, None] for name, values in zip(outputs, found, strict=True)}
    words = Bundle.open(bundle).vocabularies
    history = {
        "history_title": np.array([words["titles"].values[:4]], object),
        "history_artwork": np.array([words["artworks"].values[:4]], object),
        "history_watched": np.full((1, 4), 0.5, np.float32),
        "history_time": np.arange(4)[None] * 3600,
        "history_length": np.array([4]),
    }
    context = {name: np.array([0]) for name in ("hour", "row", "column", "play_count")}
    context |= {"country": np.array([words["countries"].values[0]], object), "device": np.array(["tv"], object)}
    context |= {"title": np.array([row["title_id"]], object), "played_before": np.array([False])}
    by_id = {"artworks": np.array([[NEW_ARTWORKS[1]]], object)}
    told = []
    for folder, name, candidates in ((bundle, "choose_vectors.onnx", vectors), (refreshed, "choose.onnx", by_id)):
        member = ort.InferenceSession(folder / "member.onnx").run(["member"], history)[0]
        session = ort.InferenceSession(folder / name)
        names = [part.name for part in session.get_outputs()]
        answer = session.run(names, {"member": member, **context, **candidates})
        told.append(dict(zip(names, answer, strict=True)))
    for name, values in told[0].items():
        np.testing.assert_allclose(np.asarray(values), np.asarray(told[1][name]), atol=1e-6, err_msg=name)
    assert np.asarray(told[0]["appeal"]).shape == (1, 1)


def test_a_title_may_come_before_its_artworks(bundle: Path, grown: Path, refreshed: Path, tmp_path: Path) -> None:
    """In two steps as in one: its first artworks give it the means that every other title has from training."""
    folder, first = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "first")
    artworks = pq.read_table(grown / "artworks.parquet")
    known = pa.array([one not in NEW_ARTWORKS for one in artworks["artwork_id"].to_pylist()])
    pq.write_table(artworks.filter(known), first / "artworks.parquet")
    assert refresh_bundle(folder, first, QUIET) == Refreshed(2, 0)
    assert refresh_bundle(folder, grown, QUIET) == Refreshed(0, 3)
    for name in ("explain.safetensors", "titles.safetensors", "posterior.safetensors"):
        one, other = load_file(refreshed / name), load_file(folder / name)
        for table, values in one.items():
            np.testing.assert_allclose(other[table], values, atol=1e-6, err_msg=table)
    opened = Bundle.open(folder)
    request = random_requests(opened.vocabularies, opened.history_length, 100, 20, 4, seed=3)
    one, other = Bundle.open(refreshed).rank(request), opened.rank(request)
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-5, err_msg=name)


def test_the_people_an_artwork_shows_are_those_that_count(bundle: Path, grown: Path, tmp_path: Path) -> None:
    """Twenty are depicted: explanations and the tower agree on whom."""
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
    request = random_requests(opened.vocabularies, opened.history_length, 50, 20, 4, seed=3)
    request["artworks"][:, 0] = opened.vocabularies["artworks"].row(NEW_ARTWORKS[0])
    terms = Explainer(opened).explain(request)
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
    one, other = load_file(plain / TABLES), load_file(folder / TABLES)
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


def test_who_serves_may_be_another_user(bundle: Path, refreshed: Path) -> None:
    for folder in (bundle, refreshed):
        assert {path.stat().st_mode & 0o044 for path in folder.rglob("*") if path.is_file()} == {0o044}

"""New titles and artworks are in the bundle, with the vectors torch would give them; and no former vector has moved."""

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
from datamodules.shards.artwork_images import content_hashes, load_images
from datamodules.shards.catalogue import build_catalogue
from export.export import explanation_tables, random_requests
from export.parity import TOWER_BOUND
from models.ranking import OUTPUTS, Ranking
from models.retrieval import title_vectors
from models.two_tower import TwoTower
from models.types import Content
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    BUNDLE_FILE,
    EXPLAIN_TABLES,
    GOLDEN,
    IMAGE_HASHES,
    TITLE_VECTORS,
    Bundle,
)
from serving.bundle.refresh import refresh as refresh_bundle
from serving.bundle.verify import verify
from tests.grown_catalogue import NEW_ARTWORKS, NEW_TITLES
from train.embed import load_encoder
from train.run import Run

QUIET = Console(quiet=True)


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
        ours, torchs = tables[name], explanation_tables(ranking)[name].numpy()
        assert ours.shape == torchs.shape, name
        new = -3 if name.startswith("artwork") else -2
        np.testing.assert_allclose(ours[new:], torchs[new:], atol=2e-3, err_msg=name)
    vectors = load_file(refreshed / TITLE_VECTORS)["title_vector"]
    with torch.no_grad():
        expected = title_vectors(ranking.model, torch.arange(len(words["titles"]))).numpy()
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    # requests with new titles and artworks as title, history and candidates
    request = random_requests(words, opened.context, opened.history_length, 60, 20, 5, seed=4)
    old_titles, old_artworks = len(words["titles"]) - 2, len(words["artworks"]) - 3
    rng = np.random.default_rng(1)
    request["title"] = old_titles + rng.integers(0, 2, 60)
    request["history_title"][:, ::3] = old_titles + rng.integers(0, 2, request["history_title"][:, ::3].shape)
    request["artworks"][:, :2] = old_artworks + rng.integers(0, 3, (60, 2))
    with torch.no_grad():
        outputs = dict(
            zip(OUTPUTS, ranking(*(torch.from_numpy(request[name]) for name in ranking.inputs)), strict=True)
        )
    answer = opened.rank(request)
    for name in ("click_probability", "engaged_probability"):  # a pixel on the edge of a bin may fall to either side
        apart = np.abs(answer[name] - outputs[name].numpy())
        assert apart.max() < TOWER_BOUND, name
        assert np.median(apart) < 1e-5, name


def test_artworks_know_their_titles(refreshed: Path, grown: Path) -> None:
    opened = Bundle.open(refreshed)
    names = ["", *opened.vocabularies["titles"].values]
    titles = [names[row] for row in opened.tables["artwork_title"]]
    table = pq.read_table(grown / "artworks.parquet", columns=["artwork_id", "title_id"]).to_pydict()
    expected = dict(zip(table["artwork_id"], table["title_id"], strict=True))
    assert titles[1:] == [expected[name] for name in opened.vocabularies["artworks"].values]


def test_no_former_vector_moved(bundle: Path, refreshed: Path) -> None:
    def explanation_tables(folder: Path, name: str) -> dict[str, np.ndarray]:
        return {t.name: numpy_helper.to_array(t) for t in onnx.load(str(folder / name)).graph.initializer}

    grew = set()
    for name in json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))["graphs"]:
        before, after = explanation_tables(bundle, name), explanation_tables(refreshed, name)
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
    kinds |= {"play_content", "play_mean_image", "play_coplay", "play_token", "title_vectors", "artwork_people"}
    kinds |= {f"{of}_{part}" for of in ("title", "mean") for part in ("vector", "content", "bias", "engaged", "coplay")}
    assert {table for _, table in grew} <= kinds
    for file in (EXPLAIN_TABLES, TITLE_VECTORS, "posterior.safetensors"):
        after = load_file(refreshed / file)
        for table, values in load_file(bundle / file).items():
            cut = tuple(slice(0, length) for length in values.shape)
            np.testing.assert_array_equal(values, after[table][cut], err_msg=table)


def test_old_requests_get_the_same_answers_to_the_bit(bundle: Path, refreshed: Path) -> None:
    before, after = Bundle.open(bundle), Bundle.open(refreshed)
    request = random_requests(before.vocabularies, before.context, before.history_length, 100, 30, 7, seed=8)
    one, other = before.rank(request), after.rank(request)
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_new_ids_are_known_everywhere(bundle: Path, refreshed: Path) -> None:
    """In golden cases, which verify runs by ids; in titles.onnx; and in the record."""
    old, new = ((folder / GOLDEN).read_text(encoding="utf-8").splitlines() for folder in (bundle, refreshed))
    assert new[: len(old)] == old
    assert len(new) > len(old)
    assert all(word in "".join(new[len(old) :]) for word in (*NEW_TITLES, *NEW_ARTWORKS))
    verified = verify(refreshed)
    assert verified.cases == len(new)
    session = ort.InferenceSession(refreshed / "titles.onnx")
    wide = session.get_inputs()[0].shape[1]
    inputs = {
        "title_query": np.ones((1, wide), np.float32),
        "played": np.array([[""]], object),
        "top": np.array([1000]),
    }
    listed = np.asarray(session.run(["titles"], inputs)[0])
    assert set(NEW_TITLES) <= set(listed[0].tolist())
    record = json.loads((refreshed / BUNDLE_FILE).read_text(encoding="utf-8"))
    assert [(one["titles"], one["artworks"]) for one in record["refreshed"]] == [(2, 3)]
    assert len(json.loads((refreshed / IMAGE_HASHES).read_text(encoding="utf-8"))) == len(
        Bundle.open(refreshed).vocabularies["artworks"].values
    )


def test_nothing_new_changes_nothing(refreshed: Path, grown: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in refreshed.iterdir()}
    assert keyart.main(["refresh", str(refreshed), str(grown)]) == 0
    assert "has every title and artwork" in capfd.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in refreshed.iterdir()}


def test_an_image_of_any_size_and_mode_is_read_as_training_reads_it(
    bundle: Path, service: Path, run: Path, tmp_path: Path
) -> None:
    """Decoded pixels into artwork.onnx, the file into the training's own encoder."""
    session = ort.InferenceSession(bundle / ARTWORK_GRAPH)
    encoder, projection = load_encoder(run)
    first = Image.open(service / pq.read_table(service / "artworks.parquet")["image"][0].as_py()).convert("RGB")
    half_seen = first.convert("RGBA")
    half_seen.putalpha(Image.linear_gradient("L").resize(first.size))
    for name, image in {
        "large.png": first.resize((611, 803), Image.Resampling.BICUBIC),
        "small.png": first.resize((2, 3)),
        "grey.png": first.convert("L"),
        "alpha.png": half_seen,
    }.items():
        image.save(tmp_path / name)
        pixels = np.asarray(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        given = {"image": pixels[None], "depicts": np.array([[""]], object)}
        embedding = np.asarray(session.run(["image_embedding"], given)[0])[0]
        with torch.no_grad():
            expected = projection(encoder(torch.from_numpy(load_images([tmp_path / name]))))[0].numpy()
        # a pixel on the edge of a bin may fall to either side
        assert np.median(np.abs(embedding - expected)) < 2e-3, name
        np.testing.assert_allclose(embedding, expected, atol=0.05 * np.abs(expected).max(), err_msg=name)


def test_images_are_known_by_their_bytes(bundle: Path, service: Path) -> None:
    table = pq.read_table(service / "artworks.parquet")
    image_of = dict(zip(table["artwork_id"].to_pylist(), table["image"].to_pylist(), strict=True))
    paths = [service / image_of[one] for one in Bundle.open(bundle).vocabularies["artworks"].values]
    assert json.loads((bundle / IMAGE_HASHES).read_text(encoding="utf-8")) == content_hashes(paths)


def test_a_new_artwork_is_ranked_at_once_by_its_vectors(bundle: Path, refreshed: Path, grown: Path) -> None:
    """artwork.onnx and choose_vectors.onnx of the old bundle, as choose.onnx of the refreshed one by its id."""
    table = pq.read_table(grown / "artworks.parquet").to_pylist()
    row = next(one for one in table if one["artwork_id"] == NEW_ARTWORKS[1])  # of a title that the old bundle knows
    pixels = np.asarray(Image.open(grown / row["image"]).convert("RGB"))
    artwork = ort.InferenceSession(bundle / ARTWORK_GRAPH)
    outputs = ["artwork_vector", "artwork_content", "artwork_bias", "artwork_engaged"]
    computed = artwork.run(outputs, {"image": pixels[None], "depicts": np.array([[""]], object)})
    vectors = {name: np.asarray(values)[:, None] for name, values in zip(outputs, computed, strict=True)}
    words = Bundle.open(bundle).vocabularies
    history = {
        "history_title": np.array([words["titles"].values[:4]], object),
        "history_artwork": np.array([words["artworks"].values[:4]], object),
        "history_watched": np.full((1, 4), 0.5, np.float32),
        "history_length": np.array([4]),
    }
    context = {name: np.array([0]) for name in ("hour", "row", "column", "play_count")}
    context |= {"country": np.array([words["country"].values[0]], object), "device": np.array(["tv"], object)}
    context |= {"title": np.array([row["title_id"]], object), "played_before": np.array([False])}
    by_id = {"artworks": np.array([[NEW_ARTWORKS[1]]], object)}
    answers = []
    for folder, name, candidates in ((bundle, "choose_vectors.onnx", vectors), (refreshed, "choose.onnx", by_id)):
        member = ort.InferenceSession(folder / "member.onnx").run(["member"], history)[0]
        session = ort.InferenceSession(folder / name)
        names = [part.name for part in session.get_outputs()]
        answer = session.run(names, {"member": member, **context, **candidates})
        answers.append(dict(zip(names, answer, strict=True)))
    for name, values in answers[0].items():
        np.testing.assert_allclose(np.asarray(values), np.asarray(answers[1][name]), atol=1e-6, err_msg=name)
    assert np.asarray(answers[0]["appeal"]).shape == (1, 1)


def test_a_title_may_come_before_its_artworks(bundle: Path, grown: Path, refreshed: Path, tmp_path: Path) -> None:
    """In two steps as in one: its first artworks give it the means that every other title has from training."""
    folder, first = shutil.copytree(bundle, tmp_path / "bundle"), shutil.copytree(grown, tmp_path / "first")
    artworks = pq.read_table(grown / "artworks.parquet")
    known = pa.array([one not in NEW_ARTWORKS for one in artworks["artwork_id"].to_pylist()])
    pq.write_table(artworks.filter(known), first / "artworks.parquet")
    for dataset, gained in ((first, (2, 0)), (grown, (0, 3))):
        result = refresh_bundle(folder, dataset, QUIET)
        assert (result.titles, result.artworks) == gained
        assert result.digest == Bundle.open(folder).digest
    for name in ("explain.safetensors", "titles.safetensors", "posterior.safetensors"):
        one, other = load_file(refreshed / name), load_file(folder / name)
        for table, values in one.items():
            np.testing.assert_allclose(other[table], values, atol=1e-6, err_msg=table)
    opened = Bundle.open(folder)
    request = random_requests(opened.vocabularies, opened.context, opened.history_length, 100, 20, 4, seed=3)
    one, other = Bundle.open(refreshed).rank(request), opened.rank(request)
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, atol=1e-5, err_msg=name)


def test_who_serves_may_be_another_user(bundle: Path, refreshed: Path) -> None:
    for folder in (bundle, refreshed):
        assert {path.stat().st_mode & 0o044 for path in folder.rglob("*") if path.is_file()} == {0o044}

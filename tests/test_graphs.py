"""What a serving team gets answers as torch does, in ids, from the folder alone; and changes of its files are detected."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import keyart
from export.graphs import strip_notes
from foundation.errors import UserError
from serving.bundle.bundle import (
    ARTWORK_GRAPH,
    BUNDLE_FILE,
    CARD,
    EXAMPLE,
    EXAMPLE_IN_NODE,
    GOLDEN,
    GOLDEN_GRAPHS,
    TITLE_GRAPH,
    Bundle,
    bundle_checksums,
)
from serving.bundle.example import largest_golden_difference, largest_graph_difference, to_arrays
from serving.bundle.golden import UNKNOWN_ID
from serving.bundle.hard_links import sha256
from serving.bundle.ids import TOWER_WEIGHTS, WEIGHTS, vocabulary_of
from serving.bundle.metadata import GRAPHS_BOUND, OLDEST_ONNXRUNTIME
from serving.bundle.seal import write_record
from serving.bundle.verify import verify
from serving.scoring.policies import DEFAULT_DRAWS, FLOOR, WIDTH
from serving.scoring.recommend import TitleRanker
from serving.scoring.thompson import Thompson
from tests.test_explain import request_of

GRAPHS = (
    "rank.onnx",
    "member.onnx",
    "choose.onnx",
    "titles.onnx",
    "explore.onnx",
    "choose_vectors.onnx",
    "artwork.onnx",
    "title.onnx",
    "rank_rows.onnx",
    "member_rows.onnx",
    "choose_rows.onnx",
    "titles_rows.onnx",
    "explain_rows.onnx",
)


def cases_of(bundle: Path) -> list[dict]:
    return [json.loads(line) for line in (bundle / GOLDEN).read_text("utf-8").splitlines()]


def run(bundle: Path, graph: str, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(bundle / graph)
    names = [part.name for part in session.get_outputs()]
    given = {part.name: request[part.name] for part in session.get_inputs()}
    return {name: np.asarray(value) for name, value in zip(names, session.run(names, given), strict=True)}


def in_ids(bundle: Bundle, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A request over rows as one over ids; row 0 is an unknown id."""

    ids = dict(request)
    for name, rows in request.items():
        if (vocabulary := vocabulary_of(name, bundle.vocabularies)) is not None:
            ids[name] = np.array([UNKNOWN_ID, *vocabulary.values], object)[rows]
    return ids


def test_the_folder_alone_is_enough(bundle: Path, tmp_path: Path) -> None:
    """numpy and onnxruntime, nothing of keyart: the folder elsewhere, the interpreter without this project's path."""
    folder = shutil.copytree(bundle, tmp_path / "elsewhere")
    done = subprocess.run(
        [sys.executable, "-I", str(folder / EXAMPLE)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        encoding="utf-8",
    )
    differences = dict(line.split("=") for line in done.stdout.strip().splitlines())
    assert list(differences) == ["max_abs_difference", "of the other graphs, relative"]
    assert all(float(value) < 1e-5 for value in differences.values())
    source = (folder / EXAMPLE).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 85
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import", "from"))}
    assert imported == {"json", "pathlib", "numpy", "onnxruntime"}


@pytest.mark.slow
def test_node_gets_the_same_numbers(bundle: Path, tmp_path: Path) -> None:
    """By onnxruntime-node, in a folder of its own."""
    if shutil.which("npm") is None:
        pytest.skip("npm, which installs onnxruntime-node, is missing")
    said = (bundle / EXAMPLE_IN_NODE).read_text("utf-8").splitlines()[1]
    install, _, run_it = said.removeprefix("//").strip().partition("; ")
    assert run_it == f"node BUNDLE/{EXAMPLE_IN_NODE}"
    subprocess.run(install.split(), cwd=tmp_path, check=True, capture_output=True)
    words = ["node", str(bundle / EXAMPLE_IN_NODE)]
    done = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True, encoding="utf-8")
    assert float(done.stdout.strip().removeprefix("max_abs_difference=")) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("packages", [("numpy", "onnxruntime"), ("numpy<2", f"onnxruntime=={OLDEST_ONNXRUNTIME}.0")])
def test_an_environment_of_two_packages_is_enough(bundle: Path, tmp_path: Path, packages: tuple[str, str]) -> None:
    """The newest, and the oldest that the documents name."""
    words = ["uv", "run", "--isolated", "--no-project", "--python", "3.11"]
    words += [word for package in packages for word in ("--with", package)]
    done = subprocess.run(
        [*words, "python", str(bundle / EXAMPLE)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    first, second = (float(line.split("=")[1]) for line in done.stdout.splitlines())
    assert first < 1e-5
    assert second < GRAPHS_BOUND


def test_golden_cases_are_of_every_kind(bundle: Path) -> None:
    opened, cases = Bundle.open(bundle), cases_of(bundle)
    requests = [case["request"] for case in cases]
    assert len(cases) >= 200
    assert {0, opened.history_length} <= {request["history_length"] for request in requests}
    assert {1, 40} <= {len(request["artworks"]) for request in requests}
    for name in ("country", "device"):
        values = opened.vocabularies[name].values
        assert {request[name] for request in requests} == {*values, UNKNOWN_ID}
    assert any(request["title"] == UNKNOWN_ID for request in requests)
    assert any(UNKNOWN_ID in request["artworks"] for request in requests)
    assert any(UNKNOWN_ID in request["history_title"] for request in requests)
    assert any(request["row"] == -1 for request in requests)
    answers = np.array([case["answer"]["click_probability"][0] for case in cases])
    assert answers.std() > 0.01


def test_ids_are_their_rows(bundle: Path) -> None:
    """A batch of many, by both graphs; and in two steps, where a member's vector is kept in between."""
    opened = Bundle.open(bundle)
    request = request_of(opened, n=30)
    expected, ids = opened.rank(request), in_ids(opened, request)
    outputs = run(bundle, "rank.onnx", ids)
    for name, values in outputs.items():
        np.testing.assert_array_equal(values, expected[name])
    ago = request["history_length"][:, None] - 1 - np.arange(request["history_title"].shape[1])
    recent = (ago >= 0) & (ago < opened.history_span)
    before = ((request["history_title"] == request["title"][:, None]) & recent).any(1)
    ids |= run(bundle, "member.onnx", ids) | {"played_before": before}
    outputs = run(bundle, "choose.onnx", ids)
    for name, values in outputs.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)
    assert (request["title"] == 0).any() or not before.all()


@pytest.mark.parametrize(
    ("requests", "plays", "candidates"), [(1, 5, 10_000), (1, 3, 0), (0, 3, 3), (1, 0, 2), (3, 4000, 1)]
)
def test_any_number_of_each(bundle: Path, requests: int, plays: int, candidates: int) -> None:
    """Ten thousand candidates and none, no request, a history longer than is read; candidates do not know of each other."""
    opened = Bundle.open(bundle)
    given = request_of(opened, n=max(1, requests))
    wide = {name: np.resize(values, (requests, plays)) for name, values in given.items() if values.ndim == 2}
    artworks = np.arange(requests * candidates).reshape(requests, candidates) % len(opened.vocabularies["artworks"])
    given = {name: values[:requests] for name, values in given.items()} | wide | {"artworks": artworks}
    given["history_length"] = np.full(requests, plays)
    outputs = run(bundle, "rank.onnx", in_ids(opened, given))
    assert outputs["click_probability"].shape == (requests, candidates)
    assert all(np.isfinite(values).all() for values in outputs.values())
    some = run(bundle, "rank.onnx", in_ids(opened, given | {"artworks": artworks[:, :1]}))
    np.testing.assert_allclose(outputs["appeal"][:, :1], some["appeal"], atol=1e-5)


def test_a_number_of_plays_that_a_request_does_not_have(bundle: Path) -> None:
    """It is clamped to those that the request gives, in every graph that reads plays and every precision; the record says so."""
    opened = Bundle.open(bundle)
    request = request_of(opened, n=6)
    request["history_length"] = np.array([21, 2**40, -1, -(2**62), 20, 0])
    clamped = request | {"history_length": np.array([20, 20, 0, 0, 20, 0])}
    for folder in (bundle, *(path.parent for path in bundle.glob("*/rank.onnx"))):
        for name in ("rank.onnx", "member.onnx", "rank_rows.onnx", "member_rows.onnx", "explain_rows.onnx"):
            if not (folder / name).is_file():
                assert folder != bundle
                continue
            rows = name.endswith("_rows.onnx")
            one, other = (run(folder, name, r if rows else in_ids(opened, r)) for r in (request, clamped))
            for output, values in one.items():
                np.testing.assert_array_equal(values, other[output], err_msg=f"{folder.name}/{name}: {output}")
    metadata = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))
    (described,) = (row for row in metadata["graphs"]["rank.onnx"]["inputs"] if row["name"] == "history_length")
    assert "clamped to 0 .. T" in described["meaning"]


def test_titles_are_those_of_recommend(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    values = np.array(["", *opened.vocabularies["titles"].values], object)
    request = in_ids(opened, request_of(opened, n=20))
    title_query = run(bundle, "member.onnx", request)["title_query"]
    played = np.where(np.random.default_rng(0).random((20, 7)) < 0.3, 0, np.arange(1, 8))
    without = np.nonzero(played)
    best, score = TitleRanker(opened).best(title_query, 9, (without[0], played[without]))
    inputs = {"title_query": title_query, "played": values[played], "top": np.array([9])}
    outputs = run(bundle, "titles.onnx", inputs)
    np.testing.assert_array_equal(outputs["titles"], values[best])
    np.testing.assert_allclose(outputs["scores"], score, atol=1e-4)
    # a short list, of a member who has played all titles but two
    everything = np.tile(values[3:], (20, 1))
    inputs |= {"played": everything, "top": np.array([len(values) + 50])}
    outputs = run(bundle, "titles.onnx", inputs)
    assert (np.sort(outputs["titles"][:, :2], 1) == np.sort(values[1:3])).all()
    assert (outputs["titles"][:, 2:] == "").all()
    assert np.isneginf(outputs["scores"][:, 2:]).all()


def test_exploring_is_thompson_sampling(bundle: Path) -> None:
    """The shares are those of the draws, and over seeds each artwork is chosen as often as it says."""
    opened = Bundle.open(bundle)
    request, seeds = request_of(opened, n=300), 4000
    # no artwork twice: between two equal ones only rounding would decide
    many = np.random.default_rng(2).random((300, len(opened.vocabularies["artworks"])))
    request["artworks"] = many.argsort(1)[:, :6]
    ranked = opened.rank(request)
    candidates = np.random.default_rng(1).integers(1, 7, 300)
    mask = np.arange(6) < candidates[:, None]
    ids = in_ids(opened, request) | {name: ranked[name] for name in ("appeal", "artwork_query", "content_query")}
    ids |= {"candidates": candidates, "seed": np.arange(300)}
    outputs = run(bundle, "explore.onnx", ids)
    expected = Thompson(opened, DEFAULT_DRAWS, WIDTH, FLOOR).probabilities(request, ranked, mask)
    assert (expected[mask] >= FLOOR / 6).all(), "so that any policy can be evaluated on the log"
    np.testing.assert_allclose(outputs["policy"], expected, atol=1e-6)
    assert (outputs["choice"] < candidates).all()
    np.testing.assert_array_equal(outputs["propensity"], outputs["policy"][np.arange(300), outputs["choice"]])
    unsure = int(outputs["policy"].max(1).argmin())
    again = {name: np.repeat(values[unsure : unsure + 1], seeds, 0) for name, values in ids.items()}
    again["seed"] = np.arange(seeds) - seeds // 2
    chosen = run(bundle, "explore.onnx", again)["choice"]
    assert 0 < outputs["policy"][unsure].max() < 1
    np.testing.assert_allclose(np.bincount(chosen, minlength=6) / seeds, outputs["policy"][unsure], atol=0.04)


def test_no_custom_operator_and_each_weight_once(bundle: Path) -> None:
    stored: dict[str, dict[int, int]] = {WEIGHTS: {}, TOWER_WEIGHTS: {}}
    for name in GRAPHS:
        model = onnx.load(str(bundle / name), load_external_data=False)
        assert {opset.domain: opset.version for opset in model.opset_import}.items() <= {
            "": 20,
            "ai.onnx.ml": 4,
        }.items()
        for tensor in model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                entry = {part.key: part.value for part in tensor.external_data}
                assert entry["location"] == (TOWER_WEIGHTS if name in (ARTWORK_GRAPH, TITLE_GRAPH) else WEIGHTS)
                stored[entry["location"]][int(entry["offset"])] = int(entry["length"])
    for file, lengths in stored.items():
        assert sum(lengths.values()) <= (bundle / file).stat().st_size < sum(lengths.values()) + 64 * len(lengths)
        content = (bundle / file).read_bytes()
        parts = [content[offset : offset + length] for offset, length in lengths.items()]
        assert len(set(parts)) == len(parts)


def test_verifying(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verified = verify(bundle)
    assert verified.cases == len(cases_of(bundle))
    assert verified.difference < 1e-5
    assert keyart.main(["verify", str(bundle)]) == 0
    assert "golden cases, max_abs_difference=" in capfd.readouterr().out

    broken = shutil.copytree(bundle, tmp_path / "bundle")
    weights = bytearray((broken / WEIGHTS).read_bytes())
    weights[len(weights) // 2] ^= 64
    (broken / WEIGHTS).write_bytes(weights)
    assert keyart.main(["verify", str(broken)]) == 1
    assert "weights.bin: is missing or is not the file that was exported" in capfd.readouterr().err

    # as if this machine computed something else: an answer that is not what the graphs say
    shutil.copy(bundle / WEIGHTS, broken / WEIGHTS)
    cases = cases_of(broken)
    cases[7]["answer"]["appeal"][0] += 0.01
    (broken / GOLDEN).write_text("\n".join(map(json.dumps, cases)) + "\n", encoding="utf-8")
    metadata = json.loads((broken / BUNDLE_FILE).read_text(encoding="utf-8"))
    metadata["sha256"][GOLDEN] = sha256(broken / GOLDEN)
    write_record(broken, metadata)
    assert largest_golden_difference(broken) == pytest.approx(0.01, abs=1e-4)
    with pytest.raises(UserError, match=r"golden cases differ by 0\.01 here, more than 0\.0001"):
        verify(broken)
    cases[7]["answer"]["appeal"][0] = float("nan")
    (broken / GOLDEN).write_text("\n".join(map(json.dumps, cases)) + "\n", encoding="utf-8")
    assert largest_golden_difference(broken) == np.inf, "NaN is not an answer"


def test_every_graph_has_golden_cases(bundle: Path, tmp_path: Path) -> None:
    """Those of a graph by itself hold for its own answers, and are of a choice that no rounding turns; a moved one is found."""
    cases = [json.loads(line) for line in (bundle / GOLDEN_GRAPHS).read_text("utf-8").strip("\n").split("\n")]
    record = Bundle.open(bundle).metadata
    assert {case["graph"] for case in cases} == set(record["graphs"]) - {"rank.onnx", "member.onnx", "choose.onnx"}
    verified = verify(bundle)
    assert len(cases) == record["golden_graphs"]["cases"] == verified.graph_cases
    for case in cases:
        outputs = [np.array(values, object) for values in case["outputs"].values()]
        assert any(value not in (0, None, "") for output in outputs for value in output.flat), case["graph"]
    assert verified.graph_difference < 1e-5
    folder = shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link)
    for graph, output, change in (
        ("explore.onnx", "policy", lambda policy: policy + 0.01),
        ("explore.onnx", "choice", lambda choice: choice + 1),
        ("titles.onnx", "titles", lambda titles: titles[:, ::-1]),
        ("title.onnx", "title_vector", lambda vector: vector * 2),
        ("artwork.onnx", "artwork_bias", lambda bias: bias + 0.01),
        ("artwork.onnx", "artwork_bias", lambda bias: bias * np.nan),
    ):
        case = next(case for case in cases if case["graph"] == graph)
        moved = np.array(case["outputs"][output])
        text = json.dumps(case | {"outputs": case["outputs"] | {output: change(moved).tolist()}})
        (folder / GOLDEN_GRAPHS).unlink()
        (folder / GOLDEN_GRAPHS).write_text(text + "\n", encoding="utf-8")
        assert largest_graph_difference(folder) > 1e-3, (graph, output)


def test_graphs_say_nothing_of_the_machine_that_exported(bundle: Path) -> None:
    """A tracer notes files, lines and its own names at every node: two exports of one run would differ, and show paths."""
    graphs = sorted(bundle.rglob("*.onnx"))
    assert len(graphs) >= len(GRAPHS)
    for path in graphs:
        model, text = onnx.load(str(path), load_external_data=False), path.read_bytes()
        stripped = onnx.ModelProto()
        stripped.CopyFrom(model)
        strip_notes(stripped)
        assert stripped == model, path
        assert not re.search(rb"\.py|/home/|/tmp/|site-packages|line \d+, in", text), path
    noted = onnx.ModelProto()
    noted.CopyFrom(onnx.load(str(graphs[0]), load_external_data=False))
    noted.graph.node[0].metadata_props.add(key="stack", value="/somewhere/keyart.py")
    noted.graph.value_info.add(name="x").doc_string = "made here"
    strip_notes(noted)
    assert not noted.graph.node[0].metadata_props
    assert not noted.graph.value_info[-1].doc_string


def test_the_record_and_the_card_list_the_graphs(bundle: Path) -> None:
    metadata, card = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8")), (bundle / CARD).read_text("utf-8")
    assert set(metadata["graphs"]) == set(GRAPHS)
    assert metadata["sha256"] == bundle_checksums(bundle)
    for name in GRAPHS:
        session = ort.InferenceSession(bundle / name)
        for side, parts in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            rows = metadata["graphs"][name][side]
            assert [row["name"] for row in rows] == [part.name for part in parts]
            for row, part in zip(rows, parts, strict=True):
                assert {"float32": "tensor(float)"}.get(row["dtype"], f"tensor({row['dtype']})") == part.type
                assert len(row["shape"].replace(",)", ")").split(",")) == len(part.shape)
    assert f"{metadata['golden']['largest_difference']:.1e} (refused above 0.0001)" in card
    assert all(f"### {name}" in card for name in GRAPHS)


def test_an_empty_history_is_a_play_of_padding() -> None:
    dtypes = {"history_title": "string", "history_watched": "float32", "history_length": "int64"}
    arrays = to_arrays(
        {"history_title": [], "history_watched": [], "history_length": 0, "title": "t", "artworks": ["a"]},
        dtypes | {"title": "string", "artworks": "string"},
    )
    assert arrays["history_title"].tolist() == [[""]]
    assert np.isnan(arrays["history_watched"]).all()
    assert arrays["artworks"].shape == (1, 1)
    assert arrays["title"].shape == (1,)

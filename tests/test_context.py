"""Context features by configuration alone: two columns without code of their own, from the log to the service and a refresh."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import keyart
from datamodules.contract.tables import IMPRESSIONS, tables_with
from datamodules.prepare.prepare import PrepareConfig, prepare
from datamodules.shards.shard import TRAIN, Shards
from export.descriptions import DESCRIPTIONS
from export.export import export
from foundation.context import (
    BUILT_IN,
    CONTEXT_FILE,
    HOURS,
    MAX_POSITION,
    RESERVED,
    RESERVED_PREFIXES,
    ContextFeature,
)
from foundation.errors import UserError
from models.context import ContextSum, zero_context
from models.ranking import Ranking
from pipeline import embedded_artworks
from serving.bundle.bundle import BUNDLE_FILE, EXAMPLE, GOLDEN, Bundle
from serving.bundle.metadata import RunOrigin
from serving.bundle.refresh import refresh
from serving.http.fields import RequestError
from serving.http.interface import openapi
from serving.http.requests import RequestReader, inputs
from serving.http.schema import PLAY, REQUEST
from serving.scoring.explain import reasons, total
from serving.scoring.score import score
from tests.conftest import TINY_EMBEDDING, TINY_FIT
from tests.own_columns import DECLARED, RECIPE, write_own_columns
from tests.test_prepare import arrays
from train.embed import embed
from train.fit import fit
from train.run import Run, read_config, sizes_of, write_config


@pytest.fixture(scope="module")
def dataset(service: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service with more columns in three files: the first has no minutes since login, in the second all are null."""
    out = tmp_path_factory.mktemp("context") / "service"
    write_own_columns(service, out)
    return out


@pytest.fixture(scope="module")
def own_shards(dataset: Path, shards: Path) -> Path:
    """Prepared by the recipe from the front door, the images embedded as those of `shards`."""
    out, recipe = dataset.parent / "shards", dataset.parent / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    assert keyart.main(["prepare", str(dataset), str(out), "--config", str(recipe)]) == 0
    embed(dataset, out, TINY_EMBEDDING)
    return out


@pytest.fixture(scope="module")
def own_run(own_shards: Path) -> Path:
    out = own_shards.parent / "run"
    fit(own_shards, out, TINY_FIT)
    return out


@pytest.fixture(scope="module")
def own_bundle(own_run: Path) -> Path:
    out, opened = own_run.parent / "bundle", Run.open(own_run)
    images, _ = embedded_artworks(own_run)
    origin = RunOrigin(fingerprint=opened.config["fingerprint"], test_from=opened.config["test_from"])
    export(opened.model, opened.vocabularies, out, origin=origin, images=images, console=Console(quiet=True))
    return out


def test_shards_hold_what_was_logged(dataset: Path, own_shards: Path) -> None:
    opened = Shards.open(own_shards)
    assert [f.name for f in opened.context] == [*(f.name for f in BUILT_IN), *DECLARED]
    assert opened.vocabularies["language"].values == ["de", "en", "ta"]
    assert opened.vocabularies["kids"].values == ["false", "true"]
    assert opened.vocabularies["plan"].values == ["1", "2", "3"]
    table = pa.concat_tables(
        [pq.read_table(path) for path in IMPRESSIONS.files(dataset)], promote_options="permissive"
    ).to_pydict()
    values = ["", *opened.vocabularies["language"].values]
    training = []
    stored_of = arrays(opened)
    for i, kids, plan, price, hour, shelf in zip(
        table["impression_id"], *(table[name] for name in ("For kids", *DECLARED[3:])), strict=True
    ):
        stored = stored_of[i]
        assert stored["kids"] == 1 + kids
        assert stored["plan"] == (plan or 0)
        assert stored["price"] == np.float32(price)
        assert stored["local_hour"] == (-1 if hour is None else hour)
        assert stored["shelf"] == (-1 if shelf is None else shelf)
    for i, language, minutes in zip(
        table["impression_id"], table["language"], table["Minutes since login"], strict=True
    ):
        stored = stored_of[i]
        assert values[int(stored["language"])] == (language or "")  # pyright: ignore[reportArgumentType]
        if minutes is None or np.isnan(minutes):
            assert np.isnan(float(stored["login_minutes"]))  # pyright: ignore[reportArgumentType]
        else:
            assert stored["login_minutes"] == np.float32(minutes)
            if stored["split"] == TRAIN:
                training.append(minutes)
    number = opened.context[len(BUILT_IN) + 1]
    assert number.mean == pytest.approx(np.mean(training), rel=1e-6)
    assert number.std == pytest.approx(np.std(training), rel=1e-6)
    assert opened.manifest["unknown"]["language"] == sum(language is None for language in table["language"])


def test_the_ranker_learns_them(own_run: Path) -> None:
    """The simulator's clicks do not know them: the test's own dataset adds clicks in Tamil and after long sessions."""
    presentation = Run.open(own_run).model.presentation.context
    by_name = {feature.name: presentation.weights(feature).weight[:, 0].tolist() for feature in presentation.features}
    _, de, en, ta = by_name["language"]
    assert ta > max(de, en) + 0.2
    _, *knots = by_name["login_minutes"]
    assert knots[-1] > knots[1] + 0.2


def test_a_number_bends_at_its_knots_and_is_unknown_where_it_is_none(own_run: Path) -> None:
    import torch

    features = Run.open(own_run).model.sizes.context
    number = replace(next(f for f in features if f.name == "login_minutes"), mean=10.0, std=2.0)
    sizes = Run.open(own_run).model.sizes._replace(context=(number,))
    term = ContextSum(sizes, "presentation", 1, 0.0)
    term.weights(number).weight.data = torch.tensor([7.0, 0.0, 1.0, 4.0, 9.0, 16.0])[:, None]
    value = torch.tensor([torch.nan, -1e9, 6.0, 8.0, 9.0, 10.0, 13.0, 14.0, 1e9])
    added = term(zero_context((), len(value)) | {number.name: value}).squeeze(-1)
    torch.testing.assert_close(added, torch.tensor([7.0, 0.0, 0.0, 1.0, 2.5, 4.0, 12.5, 16.0, 16.0]))


def test_a_feature_may_have_any_name_in_the_served_module(own_run: Path) -> None:
    """Its table is an attribute of the module, which must have no other of such a name: `rows` was once refused for one."""
    ranking = Ranking(Run.open(own_run).model.eval())
    assert {name for name in dir(ranking) if name.startswith("context_")} == {
        f"context_{f.name}" for f in ranking.features
    }


def test_the_bundle_states_and_reads_them(own_bundle: Path) -> None:
    opened = Bundle.open(own_bundle)
    graphs = json.loads((own_bundle / BUNDLE_FILE).read_text(encoding="utf-8"))["graphs"]
    for graph in ("rank.onnx", "choose.onnx"):
        stated = {part["name"]: part["dtype"] for part in graphs[graph]["inputs"]}
        assert (stated["language"], stated["login_minutes"]) == ("string", "float32")
    cases = [json.loads(line)["request"] for line in (own_bundle / GOLDEN).read_text(encoding="utf-8").splitlines()]
    assert {case["language"] for case in cases} == {"de", "en", "ta", "known to nobody"}
    assert None in {case["login_minutes"] for case in cases}
    done = subprocess.run(
        [sys.executable, "-I", str(own_bundle / EXAMPLE)], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert float(done.stdout.splitlines()[0].split("=")[1]) < 1e-5
    reader = RequestReader(opened)
    request = {"title": opened.vocabularies["titles"].values[0], "artworks": opened.vocabularies["artworks"].values[:3]}
    requests = [request, request | {"language": "ta"}, request | {"language": "xx"}, request | {"login_minutes": 200}]
    requests += [request | {"kids": True, "plan": 2}, request | {"kids": "true", "plan": "2"}]
    requests += [request | {"login_minutes": True}, request | {"login_minutes": 1}]
    read, _ = reader.read(json.dumps(requests).encode(), 0.0)
    plain, tamil, unseen, late, kid, as_text, true, one = opened.rank(inputs(read)[0])["click_probability"][:, 0]
    assert plain == unseen, "an unseen value is the unknown row, as a field that is left out"
    assert len({plain, tamil, late, kid}) == 4
    assert kid == as_text, "as JSON has it, or as the log's engine writes it"
    assert true == one != plain, "a number may be true or false, as its column may"
    for bad, message in (
        ({"login_minutes": "3"}, "login_minutes"),
        ({"login_minutes": 10**400}, "32 bits"),
    ):
        with pytest.raises(RequestError, match=message):
            reader.read(json.dumps(request | bad).encode(), 0.0)
    properties = openapi(opened, "0")["components"]["schemas"]["Request"]["properties"]
    assert properties["language"]["type"] == ["string", "integer", "boolean", "null"]
    assert properties["login_minutes"]["type"] == ["number", "boolean", "null"]


def test_explanations_share_out_their_part(own_bundle: Path) -> None:
    from export.export import random_requests

    opened = Bundle.open(own_bundle)
    request = random_requests(opened.vocabularies, opened.context, opened.history_length, 40, 20, 5, seed=3)
    terms = opened.explain(request)
    assert np.abs(total(terms) - opened.rank(request)["appeal"]).max() < 1e-5
    (explanation, *_) = reasons(opened, request, np.ones((40, 5), bool), np.zeros(40, np.int64))
    parts = explanation["context_features"]
    assert list(parts) == ["country", "device", "hour", "language", "login_minutes", "local_hour", "shelf"]
    assert sum(parts.values()) == pytest.approx(explanation["context"], abs=1e-6)


def test_scores_and_their_evaluation_tell_them_apart(own_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    opened = Bundle.open(own_bundle)
    assert score(opened, dataset, tmp_path / "scores", since=opened.test_from, console=Console(quiet=True))
    assert keyart.main(["evaluate", str(own_bundle), str(dataset), str(tmp_path / "report")]) == 0
    report = (tmp_path / "report" / "report.json").read_text(encoding="utf-8")
    slices = set(re.findall(r'"(?:name|slice)": "([a-z_ ]+)"', report))
    assert {*DECLARED, "device"} <= slices


def test_evaluation_judges_the_dataset_first(
    own_bundle: Path, service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log without the columns that the bundle reads, which would be scored as if all were unknown."""
    assert keyart.main(["evaluate", str(own_bundle), str(service), str(tmp_path / "report")]) == 1
    named = "no file has the context feature's column language. Write it, null where it is not known"
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(("value", "warned"), [(["x"], True), (["", " ", None], False)])
def test_values_a_bundle_does_not_know_are_warned_of(
    own_bundle: Path, dataset: Path, tmp_path: Path, value: list[str | None], warned: bool
) -> None:
    """Those of a column with a name of its own too; blank ones are missing, and as logged."""
    later = without_impressions(dataset, tmp_path / "service")
    table = pq.read_table(IMPRESSIONS.files(dataset)[-1])
    values = pa.array([value[row % len(value)] for row in range(table.num_rows)], pa.string())
    table = table.set_column(table.column_names.index("For kids"), "For kids", values)
    pq.write_table(table, later / "impressions" / "a.parquet")
    console = Console(file=StringIO(), record=True, width=1000)
    assert score(Bundle.open(own_bundle), later, tmp_path / "scores", console=console)
    said = f"{table.num_rows:,} of {table.num_rows:,} values of impressions.For kids are not known to {own_bundle}"
    assert (said in console.export_text()) == warned


@pytest.mark.parametrize("name", ["hour", "local_hour", "shelf", "row"])
def test_numbers_beyond_a_features_table_are_the_nearest(own_bundle: Path, name: str) -> None:
    """The tables of several features may lie one after the other in a graph: a row beyond one's is never another's."""
    from export.export import random_requests

    opened = Bundle.open(own_bundle)
    request = random_requests(opened.vocabularies, opened.context, opened.history_length, 3, 20, 5, seed=3)
    largest = MAX_POSITION if name in ("shelf", "row") else HOURS - 1
    inside, beyond = ([-1, largest, largest], [-5, largest + 1, 2**30])
    answers = [opened.rank(request | {name: np.array(values)}) for values in (inside, beyond)]
    for output in answers[0]:
        np.testing.assert_array_equal(answers[0][output], answers[1][output])


def test_a_refresh_keeps_them(own_bundle: Path, dataset: Path, grown: Path) -> None:
    before, console = Bundle.open(own_bundle).context, Console(quiet=True)
    refreshed = refresh(own_bundle, grown, console)
    assert refreshed.titles > 0
    assert refreshed.artworks > 0
    after = Bundle.open(own_bundle)
    assert after.context == before
    assert any(
        "language" in json.loads(line)["request"]
        for line in (own_bundle / GOLDEN).read_text(encoding="utf-8").splitlines()
    )


def test_a_new_day_is_standardised_as_before(dataset: Path, own_shards: Path, tmp_path: Path) -> None:
    manifest = prepare(dataset, tmp_path / "day", like=own_shards)
    assert manifest["like"] == Shards.open(own_shards).fingerprint
    assert Shards.open(tmp_path / "day").context == Shards.open(own_shards).context
    with pytest.raises(UserError, match="Leave --context out"):
        config = PrepareConfig(context=[ContextFeature(name="weather", kind="category")])
        prepare(dataset, tmp_path / "other", config, like=own_shards)


def without_impressions(dataset: Path, out: Path) -> Path:
    """A dataset's other tables and its images, and an empty folder for impressions."""
    out.mkdir()
    for path in dataset.iterdir():
        if path.name != "impressions":
            (out / path.name).symlink_to(path)
    (out / "impressions").mkdir()
    return out


BAD_COLUMNS = {
    "another type in one file": (
        "language",
        lambda table: pa.array(range(table.num_rows), pa.int64()),
        r"b\.parquet: column language has type int64, in a\.parquet it has type string",
    ),
    "a type of no category": (
        "language",
        lambda table: pa.array([["de"]] * table.num_rows),
        r"b\.parquet: column language has type list of string.*Write language as string, an integer or bool",
    ),
    "an infinite number": (
        "Minutes since login",
        lambda table: pa.array([np.inf] + [1.0] * (table.num_rows - 1)),
        r"1 row whose Minutes since login is infinite or beyond 32 bits",
    ),
}


@pytest.mark.parametrize("what", BAD_COLUMNS)
def test_bad_columns_are_named(dataset: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    column, values, message = BAD_COLUMNS[what]
    broken = without_impressions(dataset, tmp_path / "service")
    for path in IMPRESSIONS.files(dataset):
        table = pq.read_table(path)
        if path.name == "b.parquet":
            table = table.drop_columns([column]) if column in table.column_names else table
            table = table.append_column(column, values(table))
        pq.write_table(table, broken / "impressions" / path.name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    assert keyart.main(["prepare", str(broken), str(tmp_path / "out"), "--config", str(recipe)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_column_no_file_has_is_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--context", "[{name: lang, kind: category, column: langage}]"]
    assert keyart.main(["prepare", str(dataset), str(tmp_path / "out"), *words]) == 1
    assert (
        "no file has the context feature's column langage. Write it, null where it is not known, or prepare and train without "
        "the feature; name language if" in capsys.readouterr().err
    )


def test_all_null_is_all_unknown(dataset: Path, tmp_path: Path) -> None:
    """A category without values and a number without any: one row each, and nothing to divide by."""
    service = without_impressions(dataset, tmp_path / "service")
    table = pq.read_table(IMPRESSIONS.files(dataset)[0])
    table = table.append_column("empty", pa.nulls(table.num_rows)).append_column("none", pa.nulls(table.num_rows))
    pq.write_table(table, service / "impressions" / "a.parquet")
    features = [ContextFeature(name="empty", kind="category"), ContextFeature(name="none", kind="number")]
    prepare(service, tmp_path / "shards", PrepareConfig(context=features))
    opened = Shards.open(tmp_path / "shards")
    assert sizes_of(opened.vocabularies, opened.context).categories["empty"] == 1
    assert (opened.context[-1].mean, opened.context[-1].std) == (0.0, 1.0)
    assert all(np.isnan(shard.context["none"]).all() for shard in opened.shards)


def test_ten_million_values_are_refused_before_they_are_held(dataset: Path, tmp_path: Path) -> None:
    """As many values as rows, more than fit into 16 bits."""
    service = without_impressions(dataset, tmp_path / "service")
    table = pq.read_table(IMPRESSIONS.files(dataset)[-1])
    for copy in range(8):
        ids = [f"{copy}-{i}" for i in table["impression_id"].to_pylist()]
        copied = table.set_column(0, "impression_id", pa.array(ids)).append_column("session", pa.array(ids))
        pq.write_table(copied, service / "impressions" / f"{copy}.parquet")
    config = PrepareConfig(context=[ContextFeature(name="session", kind="category")])
    with pytest.raises(UserError, match=r"different values of session, and at most 32,767 are possible"):
        prepare(service, tmp_path / "shards", config)


def test_what_was_made_before_features_were_declared_is_named(own_shards: Path, own_run: Path, tmp_path: Path) -> None:
    for folder, read, remedy in (
        (own_shards, lambda path: Shards.open(path).context, "Run keyart prepare again."),
        (own_run, Run.open, "Train again with keyart fit."),
    ):
        old = shutil.copytree(folder, tmp_path / folder.name)
        (old / CONTEXT_FILE).unlink()
        if read == Run.open:  # nor were the files beside it recorded
            write_config(old, {name: value for name, value in read_config(old).items() if name != "files"})
        with pytest.raises(UserError, match=f"context.json: is missing: .*{re.escape(remedy)}"):
            read(old)


def test_no_feature_can_have_a_name_that_is_taken() -> None:
    """Columns, fields and graph inputs are one name space: every name of one is reserved in the others."""
    built_in = {feature.name for feature in BUILT_IN}
    columns = {
        column.name for table in tables_with(BUILT_IN) for column in table.columns if table.name == "impressions"
    }
    taken = {*columns, *REQUEST, *PLAY, *DESCRIPTIONS} - built_in
    free = {n for n in taken if n not in RESERVED and not n.startswith(RESERVED_PREFIXES)}
    assert free <= {"artwork", "watched"}, "fields of a play, which no context feature is beside"

"""The pipeline from a dataset to a report, stage by stage: with `keyart.py` the only module that may import every package.

Each stage is skipped where the fingerprint it left says that none of its inputs changed; an interrupted stage resumes, or
starts again from a clean folder.
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from datamodules.contract.check import require_valid
from datamodules.contract.tables import dataset_fingerprint, tables_with
from datamodules.prepare.counts import summary
from datamodules.prepare.prepare import prepare as prepare_shards
from datamodules.prepare.prepare import shards_fingerprint
from datamodules.shards.artwork_images import content_hashes
from datamodules.shards.embedding_origin import EmbeddingOrigin
from datamodules.shards.shard import EMBEDDING, MANIFEST, Shards
from datamodules.simulator.simulate import SimulateConfig, simulate_once
from evaluation.evaluate import evaluate as evaluate_scores
from evaluation.evaluate import policy_table
from evaluation.record.records import REPORT_FILE, REPORT_VERSION, Report, ReportExtras, ValueSections, read_report
from evaluation.record.rows import DifferenceRow, IntervalColumns
from evaluation.report.value_page import main_estimate
from export.export import EmbeddedArtworks
from export.export import export as export_bundle
from export.parity import compare
from foundation.atomic import atomic_file, claimed_folder, claimed_output, restore_replaced
from foundation.context import context_features, features_to_json
from foundation.errors import UserError
from foundation.fingerprint import files_fingerprint, fingerprint
from foundation.output_path import require_folder, require_output
from foundation.shell import shell_word
from foundation.stored import read_json
from models.content_towers import ArtworkEmbedding
from serving.bundle.bundle import Bundle
from serving.bundle.metadata import BUNDLE_FILE, BUNDLE_VERSION, Estimate, EvaluatedPolicy, Evaluation, RunOrigin
from serving.bundle.record import record_verdict
from serving.scoring.compare_members import opposite_members, share_flipped
from serving.scoring.policies import ServingPolicy
from serving.scoring.preferences import preferences
from serving.scoring.score import SCORES_FILE, scores_fingerprint
from serving.scoring.score import score as score_dataset
from train.config import run_fingerprint
from train.embed import describe_sources, embedding_record, load_encoder, load_vector_projection
from train.embed import embed as embed_artworks
from train.embed_config import EMBEDDING_RECORD, ENCODER
from train.fit import fit as fit_ranker
from train.recipe import Recipe
from train.run import Run, read_config

STAGE_MARKERS = {
    "shards": MANIFEST,
    f"shards/{EMBEDDING}": EMBEDDING_RECORD,
    "bundle": BUNDLE_FILE,
    "scores": SCORES_FILE,
    "report": REPORT_FILE,
}
"""Folders that stages replace, with a file that each contains."""


def run_demo(out: Path, seed: int, recipe: Recipe, console: Console, output: Console) -> None:
    """Simulate the service of a seed in `out`, run the pipeline on it, and print what its true law says of the result."""
    dataset = out / "dataset"
    with claimed_stages(dataset, out):
        simulate_once(dataset, SimulateConfig(seed=seed), console)
        report = run_pipeline(dataset, out, recipe, console)
    output.print(policy_table(report))
    print_simulated_truth(report, out, dataset, output)


def run_pipeline(dataset: Path, out: Path, recipe: Recipe, console: Console) -> Report:
    """Every stage in order, each skipped where its own fingerprint says that nothing changed; returns the report."""
    ServingPolicy.parse(recipe.policy)
    if recipe.prepare.drop_invalid:
        raise UserError(
            "prepare.drop_invalid: the pipeline scores and evaluates the log itself, which must be valid as it is. "
            f"Leave the rows out of {dataset}, or call keyart prepare, embed and fit one by one."
        )
    with claimed_stages(dataset, out):
        return _run_stages(dataset, out, recipe, console)


@contextmanager
def claimed_stages(dataset: Path, out: Path) -> Iterator[None]:
    """Claim the pipeline's folder; UserError where another process has, or where the folder of a stage cannot be written."""
    with claimed_folder(out, dataset=dataset):
        for name, marker in STAGE_MARKERS.items():
            require_output(out / name, marker, dataset=dataset)
        require_folder(out / "run", dataset=dataset)
        yield


def _run_stages(dataset: Path, out: Path, recipe: Recipe, console: Console) -> Report:
    shards, run, bundle_folder, scores, report_folder = (
        out / n for n in ("shards", "run", "bundle", "scores", "report")
    )

    def stored_fingerprint(path: Path) -> str | None:
        """A finished stage's; None where it has none, or where its record is damaged, so that the stage is made again."""
        try:
            return read_json(path, "").get("fingerprint")
        except UserError:
            return None

    images = files_fingerprint((p for p in dataset.rglob("*") if p.is_file() and p.suffix != ".parquet"), dataset)
    tables = tables_with(context_features(recipe.prepare.context))
    expected = fingerprint(dataset_fingerprint(dataset), images, features_to_json(recipe.prepare.context))
    if stored_fingerprint(out / "check.json") == expected:
        console.print(f"check: {dataset} is unchanged since it was checked")
        for line in read_json(out / "check.json", "Remove it.")["notices"]:
            console.print(line, markup=False, soft_wrap=True)
    else:
        checked = require_valid(dataset, images=True, tables=tables, console=console)
        record = {"fingerprint": expected, "notices": [str(line) for line in checked.notices()]}
        with atomic_file(out / "check.json") as partial:
            partial.write_text(json.dumps(record), encoding="utf-8")
        known = f"; {checked.coverage.line()}" if checked.coverage else ""
        console.print(f"check: {dataset} holds the contract{known}", markup=False, soft_wrap=True)
    if stored_fingerprint(shards / "manifest.json") == shards_fingerprint(dataset, recipe.prepare):
        console.print(f"prepare: {shards} is up to date")
    else:
        manifest = prepare_shards(dataset, shards, recipe.prepare, console=console)
        console.print(f"prepare: {shards}: {summary(manifest)}")
    embed_artworks(dataset, shards, recipe.embed, console)
    try:
        fit_ranker(shards, run, recipe.fit, restart=True, console=console)
    except SystemExit as ended:  # a training that SIGTERM ended is saved, status 0; the pipeline is not done
        raise SystemExit(ended.code or 128 + signal.SIGTERM) from None
    expected = fingerprint(run_fingerprint(shards, recipe.fit), BUNDLE_VERSION)
    if stored_fingerprint(bundle_folder / "bundle.json") == expected:
        console.print(f"export: {bundle_folder} is up to date")
    else:
        export_run(run, bundle_folder, console, expected)
    bundle = Bundle.open(bundle_folder)
    since = bundle.test_from
    if stored_fingerprint(scores / SCORES_FILE) == scores_fingerprint(bundle, dataset, recipe.policy, since):
        console.print(f"score: {scores} is up to date")
    else:
        score_dataset(bundle, dataset, scores, policy=recipe.policy, since=since, console=console)
    expected = fingerprint(stored_fingerprint(scores / SCORES_FILE), expected, REPORT_VERSION)
    record = report_folder / REPORT_FILE
    if record.is_file() and read_json(record, f"Remove {shell_word(report_folder)}.").get("made_from") == expected:
        console.print(f"evaluate: {report_folder} is up to date")
        report = read_report(report_folder)
        record_verdict(bundle_folder, evaluation_of(report), bundle)  # an interrupted call may have left it out
        return report
    difference = compare(Run.open(run).model, shards, scores)
    console.print(f"evaluate: largest difference between ONNX and torch over the test period {difference:.1e}")
    extra: ReportExtras = {
        "made_from": expected,
        "dataset": dataset_fingerprint(dataset),
        "onnx_torch_largest_difference": difference,
        "validation": Run.open(run).metrics,
        "preferences": preferences(bundle, dataset, shards, since),
    }
    report = evaluate_scores(
        dataset, scores, report_folder, since=since, scored_name=f"keyart {recipe.policy}", extra=extra
    )
    record_verdict(bundle_folder, evaluation_of(report), bundle)
    return report


def export_run(
    run: Path, out: Path, console: Console, fingerprint: str | None = None, *, reduced: bool = True
) -> Bundle:
    """Export a run's bundle. `reduced`: with reduced-precision graphs too, tested on the run's own shards if they still exist."""
    require_output(out, BUNDLE_FILE, sources=[run])
    opened = Run.open(run)
    config = opened.config
    images, embedding = embedded_artworks(run)
    origin = RunOrigin(
        fingerprint=fingerprint or config["fingerprint"],
        test_from=config["test_from"],
        log_fingerprint=config["log_fingerprint"],
        shards_fingerprint=config["shards_fingerprint"],
        image_encoder=config["image_encoder"],
        provenance=config["provenance"],
        metrics=opened.metrics,
        embedding=embedding,
    )
    if "validation_from" in config:  # older runs do not record it
        origin["validation_from"] = config["validation_from"]
    if "outcome_delay" in config:
        origin["outcome_delay"] = config["outcome_delay"]
    validation = shards_of(opened, console) if reduced else None
    return export_bundle(
        opened.model, opened.vocabularies, out, origin=origin, images=images, validation=validation, console=console
    )


def embedded_artworks(run: Path) -> tuple[EmbeddedArtworks, EmbeddingOrigin]:
    """The encoder and projections of a run's artworks, and their origin for the bundle's record; UserError if it is missing."""
    record = embedding_record(run)
    if record is None:
        raise UserError(f"{run / EMBEDDING_RECORD}: is missing: made by an older keyart. Train again.")
    path, expected = run / ENCODER, read_config(run).get("image_encoder_fingerprint")  # older runs do not record it
    if expected and path.is_file() and content_hashes([path])[0] != expected:
        raise UserError(f"{path}: is damaged or of another run. Train again with keyart fit.")
    encoder, projection = load_encoder(run) if record["images"] else (None, None)
    embedding = ArtworkEmbedding(encoder, projection, load_vector_projection(run))
    return EmbeddedArtworks(embedding, record["images"], record["vectors"]), describe_sources(record)


def shards_of(run: Run, console: Console) -> Shards | None:
    """The shards a run was trained on; None, with the reason on the console, where they are missing or have changed."""
    folder = Path(run.config["shards"])
    try:
        shards = Shards.open(folder)
    except UserError as error:
        console.print(f"export: no fp16 and no int8 graphs: {error}")
        return None
    if shards.fingerprint != run.config["shards_fingerprint"]:
        console.print(f"export: no fp16 and no int8 graphs: {folder} holds other shards than the run was trained on")
        return None
    return shards


def judge(source: Path, dataset: Path, out: Path, console: Console, *, record: bool = False) -> Report:
    """Score the test period by a bundle, or by a temporary one of a run, and evaluate the scores; returns the report.

    `record`: whether to write the verdict into the bundle; a UserError for a run, and where the dataset breaks the contract.
    """
    restore_replaced(source)
    is_bundle = (source / BUNDLE_FILE).is_file()
    if record and not is_bundle:
        raise UserError(
            f"{source}: is not a bundle; only a bundle records a verdict. Leave --record out, or export the run first."
        )
    if record:
        require_output(source, BUNDLE_FILE)
    with claimed_output(out, REPORT_FILE, dataset=dataset, sources=[source]), TemporaryDirectory() as folder:
        work = Path(folder)
        bundle = Bundle.open(source) if is_bundle else export_run(source, work / "bundle", console, reduced=False)
        since = bundle.test_from
        require_valid(dataset, images=False, console=console, tables=tables_with(bundle.context))
        shards = work / "shards"
        score_dataset(bundle, dataset, work / "scores", since=since, console=console, keep_shards=shards)
        extra = ReportExtras(
            dataset=dataset_fingerprint(dataset),
            preferences=preferences(bundle, dataset, shards, since),
        )
        report = evaluate_scores(dataset, work / "scores", out, since=since, extra=extra)
    if record:
        record_verdict(source, evaluation_of(report), bundle)
    return report


def evaluation_of(report: Report) -> Evaluation:
    """The part of a report that a bundle records: period, verdict, policies and how well its probabilities fit."""
    value, verdict = report["value"], report["value"]["verdict"]
    evaluation: Evaluation = {
        "policy": report["scored"],
        "verdict": {**verdict},
        "per_1000": [
            EvaluatedPolicy(
                policy=row["policy"],
                label=row["label"],
                reward=row["reward"],
                true=None if row["true_value"] is None else 1000 * row["true_value"],
                estimated=_estimated(value, row["policy"], row["reward"]),
                above_uniform=_above_uniform(value, row["policy"], row["reward"]),
            )
            for row in report["policies"]
            if row["policy"] != "best_possible"
        ],
        "since": report["since"],
        "until": report["until"],
        "impressions": report["impressions"],
        "without_choice": report["without_choice"],
        "members": report["members"],
        "randomised": report["randomised"],
        "captured_lift": report["captured_lift"],
        "metrics": {**report["metrics"]},
        "notes": report["notes"],
    }
    if "dataset" in report:
        evaluation["dataset"] = report["dataset"]
    if "engaged_metrics" in report:
        evaluation["engaged_metrics"] = {**report["engaged_metrics"]}
    if "onnx_torch_largest_difference" in report:
        evaluation["onnx_torch_largest_difference"] = report["onnx_torch_largest_difference"]
    return evaluation


def _estimated(value: ValueSections, policy: str, reward: str) -> Estimate | None:
    row = main_estimate(value, policy, reward)
    return None if row is None else _per_thousand(row["estimator"], row["verdict"], row)


def _above_uniform(value: ValueSections, policy: str, reward: str) -> Estimate | None:
    """The policy's difference to uniform, by the estimator of its value; the report holds it in either direction."""
    main = main_estimate(value, policy, reward)
    if main is None or policy == "uniform":
        return None
    rows: dict[tuple[str, str], DifferenceRow] = {
        (row["policy"], row["base"]): row
        for row in value["differences"]
        if (row["reward"], row["estimator"]) == (reward, main["estimator"])
    }
    if (policy, "uniform") in rows:
        row = rows[policy, "uniform"]
        return _per_thousand(row["estimator"], row["verdict"], row)
    row = rows.get(("uniform", policy))
    if row is None:
        return None
    low, middle, high = (None if n is None else -n for n in (row["high"], row["value"], row["low"]))
    return _per_thousand(row["estimator"], row["verdict"], {"value": middle, "low": low, "high": high})


def _per_thousand(estimator: str, verdict: str, interval: IntervalColumns) -> Estimate:
    value, low, high = (None if n is None else 1000 * n for n in (interval["value"], interval["low"], interval["high"]))
    return Estimate(estimator=estimator, verdict=verdict, value=value, low=low, high=high)


def print_simulated_truth(report: Report, out: Path, dataset: Path, output: Console) -> None:
    """Print the bundle's captured lift by the simulated service's true law, and its choices for opposite histories."""
    output.print(
        f"Captured lift, (greedy - uniform) / (best possible - uniform), by the true law: {report['captured_lift']:.2f}"
    )
    bundle = Bundle.open(out / "bundle")
    output.print(opposite_members(bundle, dataset))
    flipped = share_flipped(bundle, dataset)
    output.print(
        f"Of 200 pairs of opposite histories, {flipped['all']:.0%} are shown the two artworks they should be "
        f"(romance or comedy {flipped['mood']:.0%}, one star or another {flipped['star']:.0%})."
    )

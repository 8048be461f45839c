"""The command line of keyart: every command and nothing else.

Each command is a function; its imports are inside it, so that `keyart --help` answers at once. A command's
parameters are its positional arguments and options; commands that have a section of a recipe take that section's
fields as options (`keyart fit SHARDS RUN --epochs 3 --model.width 32`) and `--config FILE` for a recipe of `configs/`.
"""

# `keyart test` is a command, and no test with fixtures.

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from configs.commands import COMMANDS
from configs.evaluation_commands import drift, plan, read_test, value
from configs.terminal import (
    answer_without_command,
    call_command,
    print_next_command,
    print_outputs,
    run_command,
    run_process,
    stderr_console,
    stdout_console,
)

TYPE_CHECKING = False  # not typing's: jsonargparse executes the block under that, and every command would load torch
if TYPE_CHECKING:
    from datamodules.contract.engines import EngineConfig
    from datamodules.importing.config import ImportConfig
    from datamodules.prepare.prepare import PrepareConfig
    from datamodules.simulator.simulate import SimulateConfig
    from train.config import FitConfig
    from train.embed_config import EmbedConfig
    from train.recipe import Recipe


def demo(*, out: Path = Path("keyart-demo"), seed: int = 0, settings: Recipe) -> None:
    """Simulate a small service, run `keyart pipeline` on it and print what the results mean.

    Args:
        out: Folder for the dataset and everything made from it.
        seed: Seed of the simulated service; another seed is another service.
    """
    from pipeline import run_demo

    output = stdout_console()
    run_demo(out, seed, settings, stderr_console(), output)
    print_outputs(out, output, "keyart pipeline", out / "dataset", "another-folder --fit.model.width 32")


def pipeline(dataset: Path, out: Path, *, settings: Recipe) -> None:
    """Check, prepare, embed, fit, export, score and evaluate; what is up to date is skipped, what was interrupted resumes.

    Args:
        dataset: A folder by the dataset contract.
        out: Folder for shards, run, bundle, scores and report.
    """
    from evaluation.evaluate import policy_table
    from pipeline import run_pipeline

    report = run_pipeline(dataset, out, settings, stderr_console())
    output = stdout_console()
    output.print(policy_table(report))
    print_outputs(out, output, "keyart score", out / "bundle", dataset, out / "explore", "--policy epsilon:0.1")


def simulate(out: Path, *, settings: SimulateConfig) -> None:
    """Write a dataset of a simulated service whose law is known; `truth/` beside it holds the true probabilities.

    Args:
        out: Folder to write; replaced only where it holds a simulated dataset.
    """
    from datamodules.simulator.simulate import simulate as simulate_service

    simulate_service(out, settings)
    print_next_command(f"{out} written", "keyart pipeline", out, Path(f"{out}-out"))


def import_(files: list[Path], dataset: Path, *, settings: ImportConfig) -> None:
    """Write the tables that files of any columns hold into a dataset: CSV, JSON lines or Parquet, plain or gzipped.

    Args:
        files: Files, or folders of them.
        dataset: Folder for the tables; a table that is there is never replaced.
    """
    from datamodules.importing.import_files import import_files, print_imported

    imported = import_files(files, dataset, settings, stderr_console())
    print_imported(imported, stdout_console())
    print_next_command(f"{dataset}: {', '.join(imported.rows)} written", "keyart check", dataset)


def check(dataset: Path, *, like: Path | None = None) -> int:
    """Check a dataset against the contract: every violation is counted, with the first offending rows and the remedy.

    Args:
        dataset: A folder by the dataset contract; it is only read.
        like: Shards, a run, a bundle or scores whose context features' columns to judge too.
    """
    from datamodules.contract.check import check as check_dataset
    from datamodules.contract.check import print_check_report
    from datamodules.contract.tables import TABLES, tables_with
    from foundation.context import load_context

    remedy = "Name shards, a run, a bundle or scores."
    check_report = check_dataset(dataset, tables=tables_with(load_context(like, remedy)) if like else TABLES)
    print_check_report(check_report, stdout_console())
    if check_report.ok:
        print_next_command("", check_report.command)
    return 0 if check_report.ok else 1


def prepare(
    dataset: Path,
    out: Path,
    *,
    like: Path | None = None,
    since: str | None = None,
    engine: Literal["duckdb", "pyspark"] = "duckdb",
    memory: str = "",
    spark: list[str] | None = None,
    settings: PrepareConfig,
) -> None:
    """Turn raw tables into shards, each member stored once, histories strictly before each impression.

    Args:
        dataset: A folder by the dataset contract; it is only read.
        out: Folder to write the shards to.
        like: Shards whose vocabularies and image encoder to use: for a new day of the log, with `since`.
        since: Only impressions shown at or after this date or time (ISO 8601, UTC), with their members' whole histories.
        engine: duckdb, in this process; or pyspark, a session started here (extra spark, Java 17).
        memory: Memory the command may use, such as 2GB; the rest is spilled beside OUT. Default: half of the machine's.
        spark: A setting of the Spark session, KEY=VALUE; may be given again.
    """
    from datamodules.contract.engines import EngineConfig
    from datamodules.prepare.counts import print_counts
    from datamodules.prepare.prepare import check_and_prepare
    from foundation.times import parse_time

    moment = None if since is None else parse_time("since", since)
    config = EngineConfig(engine=engine, memory=memory, spark=spark or [])
    manifest = check_and_prepare(dataset, out, settings, config, like=like, since=moment, console=stderr_console())
    print_counts(manifest, stdout_console())
    print_next_command(f"{out} written", "keyart embed", dataset, out)


def embed(dataset: Path, shards: Path, *, settings: EmbedConfig) -> None:
    """Embed every artwork and keep the embeddings in the shards: its image, the vector in column `embedding`, or both.

    Args:
        dataset: The dataset the shards were prepared from.
        shards: Shards written by `keyart prepare`.
    """
    from train.embed import embed as embed_artworks

    embed_artworks(dataset, shards, settings, stderr_console())
    print_next_command("", "keyart fit", shards, "RUN")


def fit(shards: Path, run: Path, *, from_run: Path | None = None, settings: FitConfig) -> None:
    """Train a ranker. Called again with the same arguments it resumes; a finished run is left alone.

    Args:
        shards: Shards, prepared and embedded.
        run: The run folder to write.
        from_run: A finished run whose weights the training starts from, on shards prepared like its own.
    """
    from train.fit import fit as fit_ranker

    metrics = fit_ranker(shards, run, settings, from_run=from_run, console=stderr_console())
    if metrics:  # where torchrun started several processes, one of them has the results
        print_next_command(
            f"{run}: validation log loss {metrics['validation_log_loss']:.5f}", "keyart export", run, "BUNDLE"
        )


def evaluate(source: Path, dataset: Path, out: Path, *, record: bool = False) -> None:
    """Evaluate a run or a bundle on the test period: metrics, off-policy values with intervals, an HTML report.

    A run is exported to a temporary bundle first, so that what is evaluated is what would be served.

    Args:
        source: A run or a bundle.
        dataset: A dataset by the contract.
        out: Folder for report.json and report.html.
        record: Write the verdict into the bundle's bundle.json and CARD.md.
    """
    from evaluation.evaluate import policy_table
    from pipeline import judge

    report = judge(source, dataset, out, stderr_console(), record=record)
    stdout_console().print(policy_table(report))
    print_next_command(f"{out / 'report.html'} written", "keyart score BUNDLE", dataset, "SCORES")


def export(run: Path, bundle: Path) -> None:
    """Write the bundle of a finished run; refused where ONNX Runtime and torch disagree.

    Args:
        run: A run written by `keyart fit`.
        bundle: Folder to write.
    """
    from pipeline import export_run

    written = export_run(run, bundle, stderr_console())
    print_next_command(f"{bundle}: digest {written.digest}", "keyart verify", bundle)


def verify(bundle: Path, *, expect: str | None = None) -> None:
    """Check a bundle as a serving team received it: its seal, every file's SHA-256, and the golden cases by this ONNX Runtime.

    Args:
        bundle: A bundle written by `keyart export`.
        expect: The digest that export, refresh or verify printed, 64 hexadecimal digits; a bundle with another is refused.
    """
    from serving.bundle.verify import verify as verify_bundle

    print_next_command(f"{bundle}: {verify_bundle(bundle, expect)}", "keyart score", bundle, "DATASET SCORES")


def refresh(bundle: Path, dataset: Path, *, withdraw: str | None = None) -> None:
    """Add new titles and artworks to a bundle, or take some out, without training: none of its vectors changes. Needs no torch.

    Args:
        bundle: A bundle written by `keyart export`; replaced when all is done.
        dataset: A dataset by the contract, of which titles, artworks and their images are read, or the column `embedding`
            where the bundle was made from such vectors; it needs no log.
        withdraw: Titles and artworks to take out of the bundle: their ids with commas between them, or a file with one a line. A
            title's artworks go with it. title:ID or artwork:ID where an id is both.
    """
    from serving.bundle.refresh import refresh as refresh_bundle

    result = refresh_bundle(bundle, dataset, stderr_console(), withdraw)
    print_next_command(f"{bundle}: digest {result.digest}", "keyart verify", bundle)


def score(
    bundle: Path,
    dataset: Path,
    out: Path,
    *,
    policy: str = "greedy",
    reward: Literal["clicked", "engaged"] = "clicked",
    since: str | None = None,
    allow_unknown: bool = False,
    settings: EngineConfig,
) -> None:
    """Score a dataset's impressions with ONNX Runtime: click probabilities and the policy's choice, as Parquet.

    Args:
        bundle: A bundle written by `keyart export`.
        dataset: A dataset by the contract, valid by `keyart check`.
        out: Folder for the scores.
        policy: greedy, softmax:TEMPERATURE, epsilon:SHARE, or thompson:DRAWS:WIDTH:FLOOR, which shows each artwork as often as
            it is best by a draw from the posterior, its width scaled by WIDTH, but a share FLOOR uniformly (256:.25:.05).
        reward: The probability the policy chooses by: of a click, or of one that leads to a viewing.
        since: Only impressions shown at or after this date or time (ISO 8601, UTC); default: all.
        allow_unknown: Score even where the bundle knows next to none of the titles or artworks, whose scores are ties.
    """
    from foundation.times import parse_time
    from serving.bundle.bundle import Bundle
    from serving.scoring.score import check_and_score

    moment = None if since is None else parse_time("since", since)
    scored = partial(
        check_and_score, Bundle.open(bundle), dataset, out, settings, console=stderr_console(), since=moment
    )
    scored(policy=policy, reward=reward, allow_unknown=allow_unknown)
    print_next_command("", "keyart evaluate", bundle, dataset, "REPORT")


def recommend(bundle: Path, dataset: Path, out: Path, *, top: int = 10, before: str | None = None) -> None:
    """Rank all titles for every member, by affinity: those it has not played, best first, as Parquet.

    Args:
        bundle: A bundle written by `keyart export`. One trained by configs/titles.yaml ranks titles best.
        dataset: A dataset by the contract, valid by `keyart check`.
        out: Folder for member_id, titles and scores.
        top: How many titles per member.
        before: As of this date or time (ISO 8601, UTC), from the plays before it; default: from all plays.
    """
    from datamodules.contract.check import require_valid
    from foundation.atomic import claimed_output
    from foundation.times import parse_time
    from serving.bundle.bundle import Bundle
    from serving.scoring.recommend import RECOMMENDATIONS_FILE
    from serving.scoring.recommend import recommend as recommend_titles

    moment = None if before is None else parse_time("before", before)
    opened = Bundle.open(bundle)
    with claimed_output(out, RECOMMENDATIONS_FILE, dataset=dataset, sources=[bundle]):
        require_valid(dataset, images=False)
        recommend_titles(opened, dataset, out, top=top, before=moment, console=stderr_console())
    print_next_command(f"{out} written", "keyart score", bundle, dataset, "SCORES")


def serve(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    reload: bool = False,
    sticky: str | None = None,
    token: Path | None = None,
    cors: list[str] | None = None,
    log: Path | None = None,
    draws: int = 1024,
    deadline: float = 0.8,
    connections: int = 1024,
    body_bytes: int = 2**20,
) -> None:
    """Answer POST /rank over HTTP until stopped: ranked artworks, their propensities and explanations. Needs the extra `serve`.

    SIGHUP, and with --reload also a look every second, takes a bundle that has replaced the one that is served, without a lost
    request; every answer names the bundle that gave it by its digest.

    Args:
        bundle: A bundle written by `keyart export`.
        host: Address to listen at; 0.0.0.0 for all addresses of the machine.
        port: Port to listen at; 0 for any free one.
        workers: Processes that share the port, with one bundle and one page of metrics.
        reload: Whether to look every second for another bundle in the folder, and to take it.
        sticky: How long a member keeps the draw of a title where the policy is random, such as 12h or 7d; requests name the member.
        token: File with the token that requests must bring as `Authorization: Bearer TOKEN`, except /health and /ready.
        cors: Origin of web pages that may ask, such as https://example.org; * for all. A list for several.
        log: File to which every choice is appended as a line of JSON: when, by which bundle, with which propensity.
        draws: Draws of Thompson sampling that a request may ask for, at most.
        deadline: Seconds within which a body is answered, or refused with 503.
        connections: Open connections, at most, each worker.
        body_bytes: Bytes of a body, at most.
    """
    from foundation.times import duration
    from serving.http.config import RELOAD_SECONDS, ServeConfig, read_token
    from serving.http.serve import serve as serve_bundle

    config = ServeConfig(
        host=host,
        port=port,
        workers=workers,
        reload_seconds=RELOAD_SECONDS if reload else 0.0,
        sticky_seconds=0.0 if sticky is None else duration("sticky", sticky),
        token="" if token is None else read_token(token),
        cors=tuple(cors or ()),
        log=log,
        draws=draws,
        deadline=deadline,
        connections=connections,
        body_bytes=body_bytes,
    )
    serve_bundle(bundle, config, stdout_console())


def bench(*, json: Path | None = None, settings: Any) -> None:
    """Run a benchmark, or all with what they measure by default, and print one table each.

    Args:
        json: File for the rows, a list of {benchmark, subject, figure, unit, value}; `keyart` is ours.
    """
    from benchmarks import run

    run(settings, json, stderr_console(), stdout_console())


def command_function(name: str) -> Callable[..., Any]:
    """The function of a command in `COMMANDS`."""
    elsewhere = {"import": import_, "value": value, "test": read_test, "plan": plan, "drift": drift}
    return elsewhere.get(name) or globals()[name]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 unknown command, 130 and more by signals."""
    words = sys.argv[1:] if arguments is None else arguments
    code = answer_without_command(words, {name: summary for name, (summary, _) in COMMANDS.items()})
    if code is not None:
        return code
    function = command_function(words[0])
    split = (lambda rest: import_module("benchmarks").parse_command(rest)) if words[0] == "bench" else None
    return run_command(words[0], partial(call_command, words[0], function, COMMANDS[words[0]][1], words[1:], split))


def cli() -> int:
    """`main` in a process of its own."""
    return run_process(main)


if __name__ == "__main__":
    sys.exit(cli())

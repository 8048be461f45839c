"""Every recipe trains; every word a user may get wrong ends in one line; the README's commands are real."""

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import keyart
from configs.arguments import RECIPES, parse, read_section
from datamodules.feed.impression_feed import Feed
from datamodules.shards.shard import TRAIN, Shards
from foundation.errors import UserError
from models.two_tower import TwoTower
from tests.exported_files import write_all
from train.embed import load_embedding
from train.recipe import Recipe
from train.run import content_of, sizes_of
from train.task import losses

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads_and_takes_two_steps(path: Path, shards: Path) -> None:
    import torch

    words = ["data", "out", "--config", str(path)]
    recipe = parse("pipeline", keyart.pipeline, "recipe", words, None)["settings"]
    assert isinstance(recipe, Recipe)
    assert path.read_text(encoding="utf-8").startswith("#"), "a recipe says what it is for, its date and its command"
    opened = Shards.open(shards)
    model = TwoTower(
        recipe.fit.model, sizes_of(opened.vocabularies, opened.context), content_of(opened, load_embedding(shards)[0])
    )
    optimiser = torch.optim.AdamW(model.parameters(), recipe.fit.optimiser.learning_rate)
    feed = Feed(opened.shards, TRAIN, reach=recipe.fit.model.history.reach, impressions=recipe.fit.batch, shuffle=True)
    before = model.artwork_vector.weight.detach().clone()
    for _, batch in zip(range(2), feed, strict=False):
        loss, _, _ = losses(model, batch)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        assert torch.isfinite(loss)
    assert not torch.equal(before, model.artwork_vector.weight)


def test_the_command_line_has_the_last_word(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("fit:\n  epochs: 3\n  model:\n    width: 32\n", encoding="utf-8")
    words = ["shards", "run", "--config", str(recipe), "--epochs", "7"]
    settings = parse("fit", keyart.fit, "fit", words, None)["settings"]
    assert (settings.epochs, settings.model.width, settings.validations_per_epoch) == (7, 32, 2)


def test_options_and_fields_work_under_their_old_names_and_say_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "old.yaml"
    recipe.write_text(
        "fit:\n  passes: 3\n  slices: 4\n  model:\n    order:\n      rank: 16\n  titles:\n    passes: 9\n",
        encoding="utf-8",
    )
    words = ["shards", "run", "--config", str(recipe), "--passes", "7", "--model.order.ridge=20"]
    settings = parse("fit", keyart.fit, "fit", words, None)["settings"]
    assert (settings.epochs, settings.validations_per_epoch, settings.titles.epochs) == (7, 4, 9)
    assert (settings.model.next_item.rank, settings.model.next_item.ridge) == (16, 20.0)
    printed = capfd.readouterr().err
    for old, new in (
        ("passes", "epochs"),
        ("fit.slices", "fit.validations_per_epoch"),
        ("model.order.ridge", "model.next_item.ridge"),
        ("fit.titles.passes", "fit.titles.epochs"),
    ):
        assert f"keyart: {old} is now called {new}" in printed
    with pytest.raises(UserError, match="passes"):  # no field of these commands under either name
        parse("embed", keyart.embed, "embed", ["dataset", "shards", "--passes", "7"], None)


def test_a_field_that_was_removed_is_refused_with_what_to_do(tmp_path: Path) -> None:
    recipe = tmp_path / "old.yaml"
    recipe.write_text("fit:\n  optimiser:\n    rows: 1000\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"old\.yaml: fit\.optimiser\.rows was removed: .*\. Leave it out\.$"):
        parse("fit", keyart.fit, "fit", ["shards", "run", "--config", str(recipe)], None)
    with pytest.raises(UserError, match=r"^optimiser\.rows was removed: .*\. Leave it out\.$"):
        parse("fit", keyart.fit, "fit", ["shards", "run", "--optimiser.rows=1000"], None)
    with pytest.raises(UserError, match=r"^fit\.optimiser\.rows was removed"):
        parse("pipeline", keyart.pipeline, "recipe", ["data", "out", "--fit.optimiser.rows", "1000"], None)
    for name in ("heads", "time", "gated"):
        recipe.write_text(
            f"fit:\n  model:\n    history:\n      encoder: attention\n      {name}: 1\n", encoding="utf-8"
        )
        with pytest.raises(UserError, match=rf"old\.yaml: fit\.model\.history\.{name} was removed: .*Leave it out"):
            parse("fit", keyart.fit, "fit", ["shards", "run", "--config", str(recipe)], None)
        with pytest.raises(UserError, match=rf"^model\.history\.{name} was removed: .*Leave it out"):
            parse("fit", keyart.fit, "fit", ["shards", "run", f"--model.history.{name}", "1"], None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("fit:\n  epocs: 3\n", r"mine\.yaml: unknown field fit\.epocs\. Did you mean epochs"),
        ("fitt: {}\n", r"mine\.yaml: unknown field fitt"),
        ("fit:\n  model: 3\n", r"mine\.yaml: fit\.model=3: is a section"),
        ("fit:\n  epochs: many\n", "epochs"),
        ("fit:\n  epochs: 0\n", "epochs=0: must be at least 1"),
        ("fit:\n  model:\n    history:\n      span: 0\n", "span=0"),
        ("fit: [\n", r"mine\.yaml: invalid YAML"),
        ("- 1\n", r"mine\.yaml: holds no fields"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=named):
        parse("fit", keyart.fit, "fit", ["shards", "run", "--config", str(tmp_path / "mine.yaml")], None)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        read_section(tmp_path / "none.yaml", "fit", Recipe)


def code_and_error(capfd: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Exit code of a command and what it printed, errors last."""
    code = keyart.main([str(word) for word in words])
    printed = capfd.readouterr()
    return code, printed.out if words[0] == "check" else printed.err


def test_bad_words_end_in_one_line(
    service: Path,
    shards: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    own = shutil.copytree(shards, tmp_path_factory.mktemp("own") / "shards")
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("evalute",), "evalute: unknown command. Did you mean evaluate?"),
        (("fit", shards), "required"),
        (("fit", shards, tmp_path / "r", "--epochs", "x"), "epochs"),
        (("check", tmp_path / "nowhere"), "nowhere"),
        (("prepare", tmp_path / "nowhere", tmp_path / "s"), "nowhere"),
        (("fit", tmp_path, tmp_path / "r"), "no manifest.json"),
        (("embed", service, tmp_path), "no manifest.json"),
        (("embed", service, own, "--weights", "no-such-file.pth"), "weights=no-such-file.pth: no such file"),
        (("export", tmp_path, tmp_path / "b"), "is not a run: config.yaml is missing"),
        (("score", tmp_path, service, tmp_path / "s"), "no bundle.json"),
        (("score", tmp_path, service, tmp_path / "s", "--since", "soon"), "since=soon"),
        (("evaluate", tmp_path, service, tmp_path / "e"), "is not a run: config.yaml is missing"),
        (("value", tmp_path / "nowhere", tmp_path / "s", tmp_path / "v"), "nowhere"),
        (("value", service, tmp_path / "nowhere", tmp_path / "v"), "nowhere"),
        (("value", service, tmp_path / "s", tmp_path / "v", "--period", "summer"), "period"),
        (("value", service, tmp_path / "s", service), "holds files, but no value.json"),
        (("pipeline", service, tmp_path / "p", "--policy", "best"), "policy=best"),
        (("pipeline", service, tmp_path / "p", "--prepare.test", "1.5"), "test=1.5"),
        (("simulate", tmp_path / "s", "--members", "-3"), "members=-3"),
    ]
    for words, named in cases:
        code, error = code_and_error(capfd, *words)
        assert code in (1, 2), words
        assert named in error, (words, error)
        assert "Traceback" not in error
        assert words[0] == "check" or error.strip().count("\n") == 0, error
    assert not any(path.name != "s" for path in tmp_path.iterdir()), "nothing half-written"


def test_a_broken_dataset_stops_before_anything_is_written(
    service: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(service, broken)
    image = sorted((broken / "images").iterdir())[0]
    image.write_bytes(image.read_bytes()[:100])
    code, error = code_and_error(capfd, "pipeline", broken, tmp_path / "out")
    assert code == 1
    assert image.name in error
    assert not (tmp_path / "out" / "shards").exists()


def test_a_full_disk_ends_in_one_line(service: Path, tmp_path: Path) -> None:
    """A file size limit stands in for the disk: writing past it fails as writing to a full disk does."""
    program = (
        "import resource, signal, sys, keyart; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
        f"sys.exit(keyart.main(['prepare', {str(service)!r}, {str(tmp_path / 'shards')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "keyart prepare:" in done.stderr.splitlines()[-1]
    assert "The disk is full" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing_half_written(service: Path, tmp_path: Path) -> None:
    program = (
        "import _thread, sys, keyart\n"
        "import datamodules.prepare.prepare as p\n"
        "original = p.build_catalogue\n"
        "def interrupted(*words):\n"
        "    _thread.interrupt_main()\n"
        "    return original(*words)\n"
        "p.build_catalogue = interrupted\n"
        f"sys.exit(keyart.main(['prepare', {str(service)!r}, {str(tmp_path / 'shards')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, encoding="utf-8")
    assert done.returncode == 130, done.stderr
    assert "interrupted" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


PATH_WORDS = ("Path", "Path | None", "list[Path]")


@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("s3://bucket/x", "aws s3 sync s3://bucket/x FOLDER"),
        ("s3a://bucket/x", "aws s3 sync s3a://bucket/x FOLDER"),
        ("gs://bucket/x", "gcloud storage rsync -r gs://bucket/x FOLDER"),
        ("abfss://box@account.dfs.core.windows.net/x", "azcopy copy abfss://box@account"),
        ("hdfs://host:8020/x", "hdfs dfs -get hdfs://host:8020/x FOLDER"),
        ("https://host/x.csv", "curl -LO https://host/x.csv"),
        ("HTTP://host/x.csv", "curl -LO HTTP://host/x.csv"),
        ("dbfs:/mnt/x", "Copy an input here first;"),
        ("file://host/x", "names another machine"),
        ("s3:/bucket/x", "aws s3 sync"),
    ],
)
def test_a_url_is_no_folder_in_any_argument_of_any_command(
    url: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = 0
    for name in set(keyart.COMMANDS) - {"bench"}:
        function = keyart.command_function(name)
        parameters = [each for each in inspect.signature(function).parameters.values() if each.annotation in PATH_WORDS]
        for each in parameters:
            words = [
                url if other is each else "here" for other in parameters if other.default is inspect.Parameter.empty
            ]
            if each.default is not inspect.Parameter.empty:
                words += ["--" + each.name.replace("_", "-").replace("from-run", "from"), url]
            assert keyart.main([name, *words]) == 1, (name, words)
            error = capsys.readouterr().err
            assert error.startswith(f"keyart {name}: {url}: "), error
            assert remedy in error
            assert error.count("\n") == 1
            tried += 1
    assert tried > 25
    assert keyart.main(["fit", "here", "run", f"--config={url}"]) == 1
    assert remedy in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_url_is_its_path(service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a b").symlink_to(service)
    for url in (f"file://{tmp_path}/a%20b", f"file:{tmp_path}/a b", f"file://localhost{tmp_path}/a%20b"):
        assert keyart.main(["check", url]) == 0
        assert f"keyart pipeline '{tmp_path}/a b' OUT" in capsys.readouterr().out


def test_urls_that_are_no_paths_stay_what_they_are() -> None:
    words = [
        "a",
        "b",
        "--logger",
        "pytorch_lightning.loggers.CSVLogger",
        "--logger.init_args.save_dir",
        "http://host:5000",
    ]
    settings = parse("fit", keyart.fit, "fit", words, None)["settings"]
    assert settings.logger[0]["init_args"]["save_dir"] == "http://host:5000"
    words = ["a", "b", "c", "--engine", "pyspark", "--spark", "spark.master=spark://host:7077"]
    settings = parse("score", keyart.score, "engine", words, None)["settings"]
    assert settings.spark == ["spark.master=spark://host:7077"]


DOCUMENTS = ("README.md", "docs/serving.md", "docs/evaluation.md")
"""Read first, in this order: later blocks need what earlier ones wrote. All other documents follow."""


def documents() -> list[Path]:
    """README, CONTRIBUTING and docs/; experiments.md is a log of what was run, and no instructions."""
    first = [ROOT / name for name in DOCUMENTS]
    others = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {*first, ROOT / "docs/experiments.md"})
    return [*first, *others]


def documented_commands(path: Path) -> list[list[str]]:
    """The `uv run` lines of a document's code blocks, without comments."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", path.read_text(encoding="utf-8"), re.S)
    blocks = [block for language, block in blocks if language in ("", "sh")]
    lines = [line.split("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line)[2:] for line in lines if line.startswith("uv run ")]


def test_the_readme_names_its_two_commands() -> None:
    commands = documented_commands(ROOT / "README.md")
    assert ["keyart", "demo"] in commands
    assert ["pytest"] in commands


def test_the_commands_that_import_files_give_datasets_that_pass(
    service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATASET").symlink_to(service)
    write_all(service, tmp_path)
    commands = documented_commands(ROOT / "docs" / "dataset.md")
    imports = [words for words in commands if words[:2] == ["keyart", "import"]]
    assert len(imports) == 4
    for words in commands:
        if words[1] == "import" or (words[1] == "check" and words[2] != "DATASET"):
            assert keyart.main(words[1:]) == 0, words
    assert {words[-1] for words in commands if words[1] == "check"} >= {"MOVIES", "LOG", "ROWS", "WHOLE"}


@pytest.mark.slow
def test_every_command_of_the_documents_runs(service: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder where its names are real; `demo` and `pytest` themselves are what CI runs beside this.

    Training is cut short by options of the same commands.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(service, tmp_path / "DATASET")
    write_all(service, tmp_path)

    def small(where: str) -> list[str]:
        return [f"--{where}views=128", f"--{where}encoder.height=48", f"--{where}encoder.width=32"]

    short = {
        "pipeline": ["--fit.epochs", "1", "--fit.batch", "256", "--fit.evidence", "false", *small("embed.")],
        "embed": small(""),
        "fit": ["--epochs", "1", "--batch", "256", "--evidence", "false"],
    }
    ran = []
    for words in (words for path in documents() for words in documented_commands(path)):
        if words[0] != "keyart" or words[1] == "demo" or words[-1] == "--help":
            continue
        assert keyart.main([*words[1:], *short.get(words[1], [])]) == 0, words
        ran.append(words[1])
    assert {"pipeline", "check", "prepare", "embed", "fit", "export", "score", "recommend", "value", "evaluate"} <= set(
        ran
    )


def test_links_between_documents_lead_somewhere() -> None:
    for path in documents():
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target} is linked and missing"

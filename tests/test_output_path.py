"""OUT as it may be: a mount point, a link, in the dataset, below a file, read-only, or written by another command."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from real_process import start, wait_for
from rich.console import Console

import keyart
from benchmarks import BENCHMARKS, load
from benchmarks.table import Row
from benchmarks.value import Config
from configs.commands import COMMANDS
from datamodules.shards.shard import MANIFEST
from foundation.atomic import atomic_file, atomic_folder, claimed_folder, claimed_output
from foundation.errors import UserError
from foundation.output_path import require_file, require_folder, require_output
from train.run import CONFIG, METRICS

ROOT = Path(__file__).parents[1]

Words = Callable[[Path], list[str]]


@pytest.fixture(scope="module")
def commands(service: Path, shards: Path, run: Path, bundle: Path, scores: Path) -> dict[str, Words]:
    """Every command that writes a folder, by the path that it writes."""

    def words(*before: object, after: tuple[str, ...] = ()) -> Words:
        return lambda out: [*map(str, before), str(out), *after]

    return {
        "simulate": words("simulate"),
        "prepare": words("prepare", service),
        "fit": words("fit", shards, after=("--batch", "512", "--epochs", "1", "--evidence", "false")),
        "export": words("export", run),
        "score": words("score", bundle, service),
        "recommend": words("recommend", bundle, service),
        "value": words("value", service, scores),
        "evaluate": words("evaluate", bundle, service),
        "pipeline": words("pipeline", service),
        "demo": words("demo", "--out"),
        "test": words("test", service),
        "plan": words("plan", service, "--lift", "5%", "--out"),
        "import": words("import", service / "plays"),
    }


NAMES = (
    *("simulate", "prepare", "fit", "export", "score", "recommend", "value", "evaluate", "pipeline", "demo", "test"),
    *("plan", "import"),
)
INTO_A_FOLDER = ("fit", "pipeline", "demo", "import")
"""Commands that write into their folder and need no rename of it."""
OF_A_DATASET = ("prepare", "score", "recommend", "value", "evaluate", "pipeline", "test", "plan")
REPLACING = ("embed", "refresh")
"""Commands that replace what they read."""
WRITING_NOTHING = ("check", "verify", "serve", "drift")
MARKERS = {
    "simulate": "simulation.json",
    "prepare": MANIFEST,
    "export": "bundle.json",
    "score": "_scores.json",
    "recommend": "recommendations.json",
    "value": "value.json",
    "evaluate": "report.json",
    "test": "test.json",
    "plan": "plan.json",
}


def test_every_command_that_writes_is_tried() -> None:
    assert sorted((*NAMES, *REPLACING, *WRITING_NOTHING, "bench")) == sorted(COMMANDS)


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line by which a command refuses its words."""
    capsys.readouterr()
    assert keyart.main(words) == 1, words
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("name", NAMES)
def test_out_below_a_file_or_a_link_to_itself(
    commands: dict[str, Words], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("text", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for out, says in (
        ("file", f"{tmp_path / 'file'}: is a file, and the output is a folder"),
        ("file/out", f"{tmp_path / 'file/out'}: {tmp_path / 'file'} is a file"),
        ("file/a/b", f"{tmp_path / 'file/a/b'}: {tmp_path / 'file'} is a file"),
        ("loop", f"{tmp_path / 'loop'}: is a link that leads to itself"),
        (f"a/{'x' * 256}/b", f"{str(tmp_path / 'a' / ('x' * 256))[:60]}...: the name is too long"),
    ):
        file_said = says.replace("is a file, and the output is a folder", "is a file. The last word")
        assert refusal(capsys, commands[name](tmp_path / out)).startswith(
            f"keyart {name}: {file_said if name == 'import' else says}"
        )
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize("name", OF_A_DATASET)
def test_out_in_the_dataset(
    commands: dict[str, Words], name: str, service: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(service / "linked")
    for out in (service / "out", service / "a/b", tmp_path / "link", service / "images/out"):
        assert f"{out}: lies in {service}" in refusal(capsys, commands[name](out))
    assert refusal(capsys, commands[name](service)).startswith(f"keyart {name}: {service}: ")
    assert not (service / "out").exists()
    assert not list(service.glob(".*"))
    assert not list(service.parent.glob(".*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_second_command_is_refused_by_name(
    commands: dict[str, Words], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with another(out, MARKERS.get(name)):
        assert f"{out}: another keyart process writes to it." in refusal(capsys, commands[name](out))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def benchmarks_run(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs of the benchmarks that were begun: one that measures nothing is in the place of each."""
    begun: list[Config] = []

    def bench(config: Config, console: Console) -> list[Row]:
        begun.append(config)
        return []

    for name in BENCHMARKS:
        monkeypatch.setattr(load(name), "bench", bench)
    return begun


def test_files_of_a_benchmark(benchmarks_run: list[Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One benchmark or all of them: the file is refused before any work, and a device is never replaced."""
    (tmp_path / "file").write_text("text", encoding="utf-8")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for words in (["bench"], *(["bench", name] for name in BENCHMARKS)):
        for out, says in (
            (".", "is a folder, and the output is a file"),
            ("none/x.json", f"there is no folder {tmp_path / 'none'}"),
            ("file/x.json", f"{tmp_path / 'file'} is a file"),
            ("loop", "is a link that leads to itself"),
            ("pipe", "is a device or a pipe, which a file would replace"),
            ("x" * 256, "the name is too long"),
        ):
            line = refusal(capsys, [*words, "--json", str(tmp_path / out)])
            assert line.startswith(f"keyart bench: {str(tmp_path / out)[:60]}")
            assert says in line
    for work, says in (("none", "there is no such folder"), ("file", "is a file"), ("x" * 256, "name is too long")):
        for name in ("prepare", "value"):
            assert says in refusal(capsys, ["bench", name, "--work", str(tmp_path / work)])
    assert benchmarks_run == []
    assert keyart.main(["bench", "--json", str(tmp_path / "all.json")]) == 0
    assert len(benchmarks_run) == len(BENCHMARKS), "without a name, all are run"
    assert (tmp_path / "all.json").read_text(encoding="utf-8").split() == ["[]"]


@contextmanager
def another(out: Path, marker: str | None) -> Iterator[None]:
    """Another command at work on a folder; `marker`: None for one that writes in place."""
    claimed, over = Event(), Event()

    def work() -> None:
        with claimed_folder(out) if marker is None else claimed_output(out, marker):
            claimed.set()
            over.wait(60)

    thread = Thread(target=work)
    thread.start()
    try:
        assert claimed.wait(60)
        yield
    finally:
        over.set()
        thread.join()


def test_two_trainings_in_one_folder(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As two processes: the first one is not disturbed, and a killed one holds no lock."""
    run, output = tmp_path / "run", tmp_path / "said"
    words = ["fit", str(shards), str(run), "--batch", "256", "--epochs", "3", "--patience", "99", "--evidence", "false"]
    process = start(words, output)
    wait_for(run / CONFIG, 0, process)
    for second in (words, [*words, "--devices", "2"]):
        assert keyart.main(second) == 1
        assert f"{run}: another keyart process writes to it." in capsys.readouterr().err
    assert process.exitcode is None
    process.kill()
    process.join()
    assert keyart.main(words) == 0
    assert (run / METRICS).is_file()
    assert not list(run.glob(".*"))


def test_embedding_twice(service: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = shutil.copytree(shards, tmp_path / "shards")
    with another(own / "embedding", "embedding.json"):
        line = refusal(capsys, ["embed", str(service), str(own), "--views", "64"])
    assert f"{own / 'embedding'}: another keyart process writes to it." in line


def test_a_thread_may_claim_what_it_has_claimed(tmp_path: Path) -> None:
    with claimed_output(tmp_path / "out", "done"), claimed_output(tmp_path / "out", "done"):
        with atomic_folder(tmp_path / "out", "done") as folder:
            (folder / "done").touch()
        assert (tmp_path / ".out.lock").exists(), "the inner one does not end the outer one's claim"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks(
    commands: dict[str, Words],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    """As NFS without its lock service, or Lustre mounted without flock, answers."""

    def unsupported(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for name in ("prepare", "fit", "export"):
        line = refusal(capsys, commands[name](tmp_path / "out"))
        assert f"{tmp_path / 'out'}: its file system has no file locks ({os.strerror(number)})" in line
        assert "another keyart" not in line
        assert "KEYART_LOCKS=off" in line
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("KEYART_LOCKS", "off")
    assert keyart.main(commands["prepare"](tmp_path / "out")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exists", [True, False])
def test_out_that_is_a_link_is_written_through(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "disk/deep/target", tmp_path / "link"
    link.symlink_to("disk/deep/target")
    if exists:
        target.mkdir(parents=True)
    for text in ("1", "2"):
        with atomic_folder(link, "done") as folder:
            (folder / "done").write_text(text, encoding="utf-8")
        assert link.is_symlink()
        assert (target / "done").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir() if path != tmp_path / "disk"] == ["link"]
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_run_behind_a_dangling_link(commands: dict[str, Words], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("disk/run")
    assert keyart.main(commands["fit"](tmp_path / "link")) == 0
    assert (tmp_path / "disk/run" / METRICS).is_file()


def test_a_json_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link.json").symlink_to("target.json")
    with atomic_file(tmp_path / "link.json") as partial:
        partial.write_text("1", encoding="utf-8")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "target.json").read_text(encoding="utf-8") == "1"
    with pytest.raises(UserError, match="is a folder, and the output is a file"):
        require_file(tmp_path)


def test_folders_that_a_refused_command_made_are_removed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no"), claimed_output(tmp_path / "a/b/out", "done"):
        assert (tmp_path / "a/b").is_dir()
        raise UserError("no")
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "a/b/out", "done") as folder:
        (folder / "done").touch()
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["out"]


def test_out_around_what_is_read(service: Path, scores: Path, tmp_path: Path) -> None:
    """It would be replaced, and what it holds with it."""
    out = tmp_path / "out"
    shutil.copytree(scores, out / "scores")
    (out / "value.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=rf"{out}: holds {out / 'scores'}, which is read"):
        require_output(out, "value.json", sources=[out / "scores"])
    assert keyart.main(["value", str(service), str(out / "scores"), str(out)]) == 1
    assert (out / "scores").is_dir()


def test_a_name_too_long_for_its_siblings(tmp_path: Path) -> None:
    require_output(tmp_path / ("x" * 230), "done")
    with pytest.raises(UserError, match=r"cannot be written .*name too long"):
        require_output(tmp_path / ("x" * 250), "done")
    assert list(tmp_path.iterdir()) == []


MOUNTED = """
import sys
from pathlib import Path
import keyart
for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
    print("exit", keyart.main(line.split("\\t")), file=sys.stderr, flush=True)
"""
CAN_MOUNT = (
    shutil.which("unshare") is not None
    and subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, check=False
    ).returncode
    == 0
)


def in_a_namespace(tmp_path: Path, mounts: str, commands: list[list[str]]) -> list[list[str]]:
    """By command: the lines it wrote on standard error, the exit code last, with mounts that end with the call."""
    (tmp_path / "words").write_text("\n".join("\t".join(words) for words in commands), encoding="utf-8")
    (tmp_path / "program.py").write_text(MOUNTED, encoding="utf-8")
    script = f"set -e; cd {tmp_path}; {mounts}; {sys.executable} program.py words"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    answers: list[list[str]] = [[]]
    for line in done.stderr.splitlines():
        answers[-1].append(line)
        if line.startswith("exit "):
            answers.append([])
    return answers[:-1]


@pytest.mark.skipif(not CAN_MOUNT, reason="mounting needs root, as `unshare -m` gives it")
def test_out_is_a_mount_point_or_its_parent_is_read_only(commands: dict[str, Words], tmp_path: Path) -> None:
    """A volume of its own, a folder of the same file system bound into its parent, and one that may only be read."""
    names = [name for name in NAMES if name not in INTO_A_FOLDER]
    volumes = ("volume", "bound", "with blank")
    refused = [(name, volume) for volume in volumes for name in names]
    frozen = [(name, out) for out in ("frozen/new", "frozen/empty", "frozen/volume") for name in NAMES]
    frozen = [(name, out) for name, out in frozen if name not in INTO_A_FOLDER or out != "frozen/volume"]
    mounts = (
        "mkdir volume bound source 'with blank' frozen frozen/empty frozen/volume; mount -t tmpfs none volume; "
        "mount --bind source bound; mount --bind source 'with blank'; "
        "mount --bind frozen frozen; mount -o remount,ro,bind frozen; mount -t tmpfs none frozen/volume"
    )
    answers = in_a_namespace(tmp_path, mounts, [commands[name](tmp_path / out) for name, out in refused + frozen])
    assert len(answers) == len(refused + frozen)
    for (name, out), (line, code) in zip(refused + frozen, answers, strict=True):
        assert code == "exit 1", line
        assert line.startswith(f"keyart {name}: {tmp_path / out}: "), line
        if out in volumes or out == "frozen/volume":
            assert "is a mount point, and output appears by a rename. Name a folder inside it: " in line
        else:
            assert "Read-only file system" in line
        assert "resumes" not in line


@pytest.mark.skipif(not CAN_MOUNT, reason="mounting needs root, as `unshare -m` gives it")
def test_a_run_and_a_folder_inside_a_mount_point(commands: dict[str, Words], tmp_path: Path) -> None:
    words = [commands["fit"](tmp_path / "volume"), commands["prepare"](tmp_path / "other/shards")]
    copy = "mkdir volume other; mount -t tmpfs none volume; mount -t tmpfs none other"
    answers = in_a_namespace(tmp_path, copy, words)
    assert [answer[-1] for answer in answers] == ["exit 0", "exit 0"], answers


def test_permissions(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the read-only mount above is what it meets")
    tmp_path.chmod(0o500)
    with ExitStack() as stack:
        stack.callback(tmp_path.chmod, 0o700)
        with pytest.raises(UserError, match="Permission denied"):
            require_output(tmp_path / "out", "done")
        with pytest.raises(UserError, match="Permission denied"):
            require_folder(tmp_path / "out")

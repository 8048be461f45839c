"""Which room may import which; and a front door that answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("foundation", "models", "datamodules", "train", "evaluation", "export", "serving", "configs", "benchmarks")
LEARNING = {"torch", "torchvision", "pytorch_lightning"}


def imports(path: Path) -> set[str]:
    """Top-level names a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def room_imports(room: str) -> set[str]:
    files = list((ROOT / room).rglob("*.py"))
    assert files, f"{room} has no modules"
    return set().union(*(imports(path) for path in files)) - {room}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name, tests left out."""
    paths = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + list(ROOT.glob("*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def import_graph() -> dict[str, set[str]]:
    """By module: the modules of the project that it imports, wherever in the file."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        # a package's own file is imported with each of its modules, and says nothing of a direction where it is empty
        graph[name] = {other for other in imported & known.keys() if other != name and known[other].stat().st_size}
    return graph


def test_no_import_circles() -> None:
    graph, state, path = import_graph(), {}, []

    def visit(name: str) -> None:
        state[name] = "open"
        path.append(name)
        for other in sorted(graph[name]):
            assert state.get(other) != "open", f"circle: {' -> '.join([*path[path.index(other) :], other])}"
            if other not in state:
                visit(other)
        path.pop()
        state[name] = "done"

    for name in sorted(graph):
        if name not in state:
            visit(name)


@pytest.mark.parametrize(
    ("part", "may_import"),
    [
        ("datamodules.contract", {"foundation"}),
        ("datamodules.shards", {"foundation", "datamodules.contract"}),
        ("datamodules.prepare", {"foundation", "datamodules.contract", "datamodules.shards"}),
        ("datamodules.feed", {"foundation", "datamodules.contract", "datamodules.shards"}),
        ("datamodules.simulator", {"foundation", "datamodules.contract"}),
        ("datamodules.importing", {"foundation", "datamodules.contract"}),
        ("evaluation.record", {"foundation"}),
        ("evaluation.off_policy", {"foundation", "evaluation.record"}),
        ("evaluation.logs", {"foundation", "datamodules.contract", "evaluation.record", "evaluation.off_policy"}),
        (
            "evaluation.audits",
            {
                *("foundation", "datamodules.contract", "evaluation.record"),
                *("evaluation.off_policy", "evaluation.logs"),
            },
        ),
        ("evaluation.experiments", {"foundation", "datamodules.contract", "evaluation.record", "evaluation.logs"}),
        (
            "evaluation.report",
            {
                *("foundation", "datamodules.contract", "evaluation.record"),
                *("evaluation.off_policy", "evaluation.logs", "evaluation.audits"),
            },
        ),
        (
            "evaluation.planning",
            {
                *("foundation", "datamodules.contract", "evaluation.record"),
                *("evaluation.off_policy", "evaluation.logs"),
            },
        ),
        ("serving.bundle", {"foundation", "datamodules.contract", "datamodules.shards", "datamodules.prepare"}),
        (
            "serving.scoring",
            {
                *("foundation", "datamodules.contract", "datamodules.shards", "datamodules.prepare"),
                *("datamodules.simulator", "serving.bundle"),
            },
        ),
        (
            "serving.http",
            {"foundation", "datamodules.contract", "datamodules.shards", "serving.bundle", "serving.scoring"},
        ),
    ],
)
def test_parts_of_rooms(part: str, may_import: set[str]) -> None:
    for name, imported in import_graph().items():
        if name.startswith(f"{part}."):
            for other in imported:
                assert any(other.startswith(f"{allowed}.") for allowed in may_import | {part}), (
                    f"{name} imports {other}"
                )


def test_every_room_is_known() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(ROOMS)


def test_models_import_torch_and_torchvision_only() -> None:
    outside = {name for name in room_imports("models") if name not in sys.stdlib_module_names}
    assert outside <= {"torch", "torchvision", "foundation"}


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("foundation", set(ROOMS) | {"keyart", "pipeline", *LEARNING}),
        ("datamodules", {"models", "train", "evaluation", "export", "serving", "benchmarks", "keyart", "pipeline"}),
        ("evaluation", {"models", "train", "export", "serving", "benchmarks", "keyart", "pipeline", *LEARNING}),
        ("export", {"train", "evaluation", "benchmarks", "pytorch_lightning", "keyart", "pipeline"}),
        ("serving", {"models", "train", "evaluation", "export", "benchmarks", "keyart", "pipeline", *LEARNING}),
        ("train", {"export", "serving", "benchmarks", "keyart", "pipeline"}),
        ("configs", {"benchmarks", "keyart", "pipeline"}),
        ("benchmarks", {"keyart", "pipeline"}),
        ("models", (set(ROOMS) | {"keyart", "pipeline"}) - {"foundation"}),
    ],
)
def test_directions(room: str, never: set[str]) -> None:
    assert not room_imports(room) & (never - {room})


@pytest.mark.parametrize(
    "module",
    [
        "serving.scoring.score",
        "serving.scoring.compare_members",
        "serving.scoring.preferences",
        "serving.http.application",
        "serving.bundle.verify",
        "serving.bundle.refresh",
        "serving.bundle.record",
        "evaluation.evaluate",
        "datamodules.contract.check",
    ],
)
def test_serving_and_judging_run_without_torch(module: str) -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(LEARNING))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}; import {module}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr


def test_an_executor_needs_no_engine() -> None:
    """Beside numpy, pyarrow, onnxruntime, safetensors and rich, which `serving.scoring.score_spark` names."""
    never = {*LEARNING, "pandas", "duckdb", "ibis", "pyspark", "onnx", "jsonargparse", "yaml", "matplotlib", "PIL"}
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(never))
    program = f"import sys; {blocked}; import serving.scoring.score_spark"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pyarrow', 'rich', 'jsonargparse'}"
    program = f"import sys, keyart; keyart.main(['--help']); print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr


def test_scripts_that_benchmarks_start_exist() -> None:
    started = [
        (path, node.args[0].value)
        for path in (ROOT / "benchmarks").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "with_name"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert started
    assert [(path.name, name) for path, name in started if not path.with_name(str(name)).is_file()] == []

"""Which room may import which; and a front door that answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("models", "datamodules", "train", "evaluation", "export", "configs", "benchmarks")
LEARNING = {"torch", "torchvision", "pytorch_lightning"}


def imports(path: Path) -> set[str]:
    """Top-level names a module imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def room_imports(room: str) -> set[str]:
    files = list((ROOT / room).glob("*.py"))
    assert files, f"{room} has no modules"
    return set().union(*(imports(path) for path in files)) - {room}


def test_every_room_is_known() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms == set(ROOMS)


def test_models_import_torch_and_torchvision_only() -> None:
    outside = {name for name in room_imports("models") if name not in sys.stdlib_module_names}
    assert outside <= {"torch", "torchvision"}


@pytest.mark.parametrize(
    ("room", "never"),
    [
        ("datamodules", {"models", "train", "evaluation", "export", "benchmarks", "keyart", "pipeline"}),
        ("evaluation", {"models", "train", "export", "benchmarks", "keyart", "pipeline", *LEARNING}),
        ("export", {"train", "evaluation", "benchmarks", "pytorch_lightning", "keyart", "pipeline"}),
        ("train", {"export", "benchmarks", "keyart", "pipeline"}),
        ("configs", {"benchmarks", "keyart", "pipeline"}),
        ("benchmarks", {"keyart", "pipeline"}),
        ("models", set(ROOMS) | {"keyart", "pipeline"}),
    ],
)
def test_directions(room: str, never: set[str]) -> None:
    assert not room_imports(room) & (never - {room})


@pytest.mark.parametrize(
    "module",
    [
        "export.score",
        "export.side_by_side",
        "export.application",
        "export.verify",
        "export.refresh",
        "export.record",
        "evaluation.evaluate",
        "datamodules.check",
    ],
)
def test_serving_and_judging_run_without_torch(module: str) -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(LEARNING))
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {blocked}; import {module}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_an_executor_needs_no_engine() -> None:
    """Beside numpy, pyarrow, onnxruntime, safetensors and rich, which `export.score_spark` names."""
    never = {*LEARNING, "pandas", "duckdb", "ibis", "pyspark", "onnx", "jsonargparse", "yaml", "matplotlib", "PIL"}
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in sorted(never))
    program = f"import sys; {blocked}; import export.score_spark"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pyarrow', 'rich', 'jsonargparse'}"
    program = f"import sys, keyart; keyart.main(['--help']); print(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("[]"), done.stdout + done.stderr

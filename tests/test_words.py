"""The words of the code: names and docstrings in the plain English of the field, those of `docs/glossary.md`."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {"told", "found", "chance", "there", "place"}
"""Words that say nothing of a value: it is a message, a result's own name, a generator, a mask or an index."""
PATHS = sorted(
    path
    for path in ROOT.rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts) and path != Path(__file__)
)


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


def words_of(name: str) -> set[str]:
    """The parts of a name in snake case."""
    return set(name.lower().split("_"))


def record_fields(tree: ast.Module) -> set[ast.AST]:
    """The fields of typed dictionaries, which are keys of JSON files that others read."""
    return {
        statement.target
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and "TypedDict" in {ast.unparse(base).split(".")[-1] for base in node.bases}
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }


def defined_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every name that a module defines, with its line: of functions, classes, arguments, variables and attributes."""
    exempt = record_fields(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in exempt:
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every string that stands as a statement, with its line: docstrings of modules, classes, functions, fields, constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value, node.lineno


def test_names_and_docstrings() -> None:
    names, fragments = [], []
    for path in PATHS:
        tree, where = parsed(path), path.relative_to(ROOT)
        names += [f"{where}:{line}: {name}" for name, line in defined_names(tree) if WORDS & words_of(name)]
        fragments += [f"{where}:{line}: {text[:50]}" for text, line in docstrings(tree) if text.startswith("Of ")]
    assert names == [], "a name says what a value is: message, output, rng, mask, index"
    assert fragments == [], "a docstring is a sentence that can be read alone"


def misnamed_parameters(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Names that a docstring describes as parameters, "`name`: ...", and that are none of the function's, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.vararg is None:
            parameters = {arg.arg for arg in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]}
            for described in re.findall(r"((?:`[a-zA-Z_]\w*`, )*`[a-zA-Z_]\w*`): ", ast.get_docstring(node) or ""):
                for name in set(re.findall(r"\w+", described)) - parameters:
                    yield name, node.lineno


def test_docstrings_describe_parameters_that_exist() -> None:
    misnamed = [
        f"{path.relative_to(ROOT)}:{line}: {name}" for path in PATHS for name, line in misnamed_parameters(parsed(path))
    ]
    assert misnamed == []


def test_a_misnamed_parameter_is_seen() -> None:
    source = 'def f(a: int, b: int) -> None:\n    """Do it.\n\n    `a`, `c`: the numbers; `d` is mentioned.\n    """'
    assert list(misnamed_parameters(ast.parse(source))) == [("c", 1)]


@pytest.mark.parametrize(
    "source",
    [
        "told = 1",
        "for place, value in rows: pass",
        "def f(*, there_NK): pass",
        "self.found = 1",
        "class Chance: pass",
        "with f() as (a, found_N): pass",
        "class A:\n    place: int",
    ],
)
def test_names_are_seen(source: str) -> None:
    assert any(WORDS & words_of(name) for name, _ in defined_names(ast.parse(source)))


def test_keys_of_records_are_exempt() -> None:
    assert "place" not in dict(defined_names(ast.parse("class Row(TypedDict):\n    place: int")))

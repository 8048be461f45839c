"""Recipes and command lines -> typed arguments.

Defaults are in the config dataclasses only; a recipe names what differs; the command line overrides both.
An unknown option or field, or a value of the wrong type or range, ends in one line that names it.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.text import Text

from configs.paths import local_path
from foundation.errors import UserError
from train.plugins import ClassSpec

RECIPES = Path(__file__).parent
NO_RECIPES = ("engine", "import", "plan", "test")
"""Sections that are not part of a recipe: resources that a command may use, which change no result; what files hold; questions."""


def section_class(section: str) -> type:
    """The dataclass of a section; `recipe` is a whole recipe."""
    if section == "prepare":
        from datamodules.prepare.prepare import PrepareConfig as Section
    elif section == "simulate":
        from datamodules.simulator.simulate import SimulateConfig as Section
    elif section == "embed":
        from train.embed_config import EmbedConfig as Section
    elif section == "fit":
        from train.config import FitConfig as Section
    elif section == "import":
        from datamodules.importing.config import ImportConfig as Section
    elif section == "plan":
        from evaluation.plan import PlanConfig as Section
    elif section == "test":
        from evaluation.experiment import ExperimentConfig as Section
    elif section == "engine":
        from datamodules.contract.engines import EngineConfig as Section
    else:
        from train.recipe import Recipe as Section
    return Section


def parse(
    name: str, function: Callable[..., Any], section: str | type | None, words: list[str], recipe: Path | None
) -> dict[str, Any]:
    """Keyword arguments for a command's function, `settings` included where it has a section.

    `section`: a section's name, or a dataclass that is not a section. `recipe`: read where the words have no `--config`, which
    is allowed for a recipe's sections. `--help` prints and exits with status 0; invalid words raise a UserError.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog=f"keyart {name}", description=_summary(function), exit_on_error=False)
    parser.add_function_arguments(function, as_positional=True, skip={"settings"})
    for action in parser._actions:
        if getattr(action, "_typehint", None) == list[Path]:
            action.metavar = f"{action.dest.upper()} ..."
    class_ = section_class(section) if isinstance(section, str) else section
    of_recipe = section if isinstance(section, str) and section not in NO_RECIPES else None
    if of_recipe:
        parser.add_argument("--config", type=Path, default=None, help="a recipe: a YAML file as those in configs/")
    if class_ is not None:
        parser.add_class_arguments(class_, None)
    if class_ is not None and of_recipe:
        chosen = _config_path(words) or recipe
        if chosen is not None:  # placed before the user's words: both are checked alike, and the user's override them
            fields_set = _flat(read_section(chosen, of_recipe, class_))
            # a string unquoted: in quotes it would not match a field's allowed values
            normalised = {
                k: value if isinstance(value, str) and value else json.dumps(value, default=str)
                for k, value in fields_set.items()
            }
            words = [*(f"--{key}={value}" for key, value in normalised.items()), *words]
    try:
        parsed = parser.parse_args(_normalised(words, parser))
        return _arguments(parser.instantiate(parsed), class_)
    except UserError:
        raise
    except Exception as error:  # argparse, jsonargparse and a config's own checks each raise their own
        raise UserError(f"{_one_line(error)} (keyart {name} --help explains).") from None


class _Parser(ArgumentParser):
    """Options have dashes where fields have underscores: `--drop-invalid`."""

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The text of `--help`, with dashes in option names."""
        return re.sub(
            r"--\w[\w.]*", lambda match: match[0].replace("_", "-"), super().format_help(*args, **kwargs)
        ).replace("--from-run", "--from")


ALIASES = {"--from": "--from_run"}
"""Options whose name is a keyword of Python."""
RENAMED = {
    "passes": "epochs",
    "slices": "validations_per_epoch",
    "order": "next_item",
}
"""Fields by their old names, from before version 0.2, in options and in recipes: read with a warning until version 0.3."""

REMOVED = {
    "optimiser.rows": "AdamW updates every table as a whole",
    "history.heads": "attention has one head",
    "history.time": "the weight of a play depends on its distance in plays",
    "history.gated": "the layers of attention are always gated",
}
"""Removed fields, by the end of their dotted path, and what holds instead."""


def refuse_removed(path: str, where: str = "") -> None:
    """Raise a UserError where a dotted field path is one of `REMOVED`; `where` begins its message."""
    for name, reason in REMOVED.items():
        if path == name or path.endswith(f".{name}"):
            raise UserError(f"{where}{path} was removed: {reason}. Leave it out.")


def renamed(path: str, known: Callable[[str], bool]) -> str:
    """A dotted field path under its current name; prints a warning on standard error where it has an old one.

    `known`: whether a path names a field. A path that names one, or names none under current names either, is returned as it is.
    """
    current = ".".join(RENAMED.get(part, part) for part in path.split("."))
    if current == path or known(path) or not known(current):
        return path
    print(f"keyart: {path} is now called {current}; the old name stops working in version 0.3.", file=sys.stderr)
    return current


SPECS = (bool | list[ClassSpec], list[ClassSpec])
"""Types of options whose values are classes."""
PATHS = (Path, Path | None)
LISTS = (list[str], list[str] | None, list[int], list[float])


def _normalised(words: list[str], parser: ArgumentParser) -> list[str]:
    """The words in the parser's form: underscores for dashes, `true` after a bare flag, lists as `1,2` or option by option.

    Where a positional argument is a list, it takes all positional words but those that the others need.
    """
    known = parser._option_string_actions
    normalised: list[str] = []
    lists: dict[str, list[str]] = {}
    of_specs = [name for name, action in known.items() if getattr(action, "_typehint", None) in SPECS]
    spec_options = [name for name in of_specs if not name.endswith((".help", "+"))]
    specs: dict[str, _Specs] = {}
    positional: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            if word in known:
                normalised.append(word)
            else:
                positional.append(local_path(word))
            continue
        if left[:1] == ["%"]:  # --lift=2 %
            value = f"{value} {left.pop(0)}"
        elif left[1:2] == ["%"] and not equals:  # --lift 2 %
            left[:2] = [" ".join(left[:2])]
        name = name if name in known else "--" + name[2:].replace("-", "_")
        name = ALIASES.get(name, name)
        name = "--" + renamed(name[2:], lambda path: f"--{path}" in known)
        if name not in known:
            refuse_removed(name[2:])
            _refuse_unknown(name, known, spec_options, parser.prog)
        type_ = getattr(known.get(name), "_typehint", None)
        name = name.removesuffix("+") if name[:-1] in spec_options else name  # as jsonargparse adds to a list
        spec_option = next((option for option in spec_options if f"{name}.".startswith(f"{option}.")), None)
        if spec_option is not None and name != f"{spec_option}.help":
            value = value if equals or not left else left.pop(0)
            given = specs.setdefault(spec_option, _Specs(spec_option))
            given.add(name.removeprefix(spec_option).removeprefix("."), value)
        elif type_ is bool and not equals:
            flag_value = left.pop(0) if left and left[0] in ("true", "false") else "true"
            normalised.append(f"{name}={flag_value}")
        elif type_ in LISTS:
            value = value if equals or not left else left.pop(0)
            if type_ in (list[str], list[str] | None) and not value.startswith("["):
                lists.setdefault(name, []).append(value)
            else:
                normalised.append(f"{name}={value}" if value.startswith("[") else f"{name}=[{value}]")
        else:
            if not equals and name in known and known[name].nargs is None and left and not left[0].startswith("--"):
                equals, value = "=", left.pop(0)
            if type_ in PATHS and equals:
                value = local_path(value)
            normalised.append(f"{name}{equals}{value}")
    taking = [action for action in parser._actions if not action.option_strings and action.dest != "config"]
    many = len(positional) - len(taking) + 1
    at = next((n for n, action in enumerate(taking) if getattr(action, "_typehint", None) == list[Path]), None)
    if at is not None and positional:
        if many < 1:
            names = [f"{action.dest.upper()}{' ...' if n == at else ''}" for n, action in enumerate(taking)]
            raise UserError(f"{' '.join(positional)}: give {' '.join(names)}.")
        positional[at : at + many] = [json.dumps(positional[at : at + many])]
    normalised = [*positional, *normalised]
    gathered = lists | {name: given.value for name, given in specs.items()}
    return [*normalised, *(f"{name}={json.dumps(values)}" for name, values in gathered.items())]


def _refuse_unknown(name: str, known: Iterable[str], spec_options: list[str], command: str) -> None:
    """Raise a UserError for an option that the command has not: argparse would take the beginning of one for the whole."""
    if name.removesuffix("+") in spec_options or any(name.startswith(f"{option}.") for option in spec_options):
        return
    near = get_close_matches(name, [option for option in known if option.startswith("--")], 1)
    hint = f"Did you mean {near[0].replace('_', '-')}?" if near else f"{command} --help lists all."
    raise UserError(f"{name.replace('_', '-')}: unknown option. {hint}")


class _Specs:
    """The words of one option that names classes: `--logger CLASS --logger.init_args.save_dir logs --logger CLASS`."""

    def __init__(self, option: str) -> None:
        self.option, self.by_word = option, False
        self.value: bool | list[dict[str, Any]] = []

    def add(self, field: str, word: str) -> None:
        """Take one word: a class path adds a class to those of earlier words; the first one replaces a recipe's classes."""
        try:
            value = json.loads(word)
        except ValueError:
            value = word
        if field in ("", "class_path"):
            one_more = isinstance(value, str)
            given = value if isinstance(value, bool | list) else [value]
            if isinstance(given, list):
                before = self.value if one_more and self.by_word and isinstance(self.value, list) else []
                given = [*before, *(self._spec(each, word) for each in given)]
            self.value, self.by_word = given, one_more
            return
        if not self.value or isinstance(self.value, bool):
            raise UserError(f"{self.option}.{field}={word}: name a class with {self.option} first.")
        arguments = value if field == "init_args" else {field.removeprefix("init_args."): value}
        if not isinstance(arguments, dict):
            raise UserError(f"{self.option}.init_args={word}: must be a mapping of arguments to values.")
        last = self.value[-1]
        self.value[-1] = self._spec({**last, "init_args": last.get("init_args", {}) | arguments}, word)

    def _spec(self, value: Any, word: str) -> dict[str, Any]:
        spec = {"class_path": value} if isinstance(value, str) else value
        known = isinstance(spec, dict) and spec.keys() <= {"class_path", "init_args"}
        if not (known and spec.get("class_path") and isinstance(spec.get("init_args", {}), dict)):
            raise UserError(
                f"{self.option}={word}: give the path of a class, such as pytorch_lightning.loggers.CSVLogger, or a mapping of "
                "class_path and init_args, or a list of these."
            )
        return spec


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a mapping with two equal keys, of which the first would be lost unsaid."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a YAMLError where a key is written twice."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is written twice, {node.start_mark}")
        return super().construct_mapping(node, deep)


def read_section(path: Path, section: str, class_: type) -> dict[str, Any]:
    """The fields a recipe sets for one section, `recipe` for all; unknown fields and broken YAML are UserErrors."""
    try:
        whole = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Name a recipe, such as those in configs/."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: invalid YAML ({_one_line(error)}).") from None
    if not isinstance(whole, dict):
        raise UserError(f"{path}: holds no fields. A recipe has sections such as `fit:`.")
    whole = _under_current_names(whole, section_class("recipe"), "")
    _require_known_fields(whole, section_class("recipe"), path, "")
    chosen = whole if section == "recipe" else whole.get(section, {})
    return chosen if isinstance(chosen, dict) else {}


def _under_current_names(values: dict[str, Any], class_: type, where: str) -> dict[str, Any]:
    """The same fields, old names replaced by current ones; prints a warning for each."""
    hints = get_type_hints(class_)
    names = {field.name for field in fields(class_)}
    current: dict[str, Any] = {}
    for name, value in values.items():
        now = str(name) if name in names else renamed(f"{where}{name}", lambda path: path.rpartition(".")[2] in names)
        now = now.rpartition(".")[2]
        hint = hints.get(now)
        if isinstance(value, dict) and isinstance(hint, type) and is_dataclass(hint):
            value = _under_current_names(value, hint, f"{where}{now}.")
        current[now] = value
    return current


def _require_known_fields(values: dict[str, Any], class_: type, path: Path, where: str) -> None:
    """Raise a UserError where the dataclass has no such field."""
    hints = get_type_hints(class_)
    names = [field.name for field in fields(class_)]
    for name, value in values.items():
        if name not in names:
            refuse_removed(f"{where}{name}", f"{path}: ")
            matches = get_close_matches(str(name), names, 1)
            hint = f"Did you mean {matches[0]}?" if matches else f"Fields: {', '.join(names)}."
            raise UserError(f"{path}: unknown field {where}{name}. {hint}")
        if is_dataclass(hints[name]) and isinstance(hints[name], type):
            if not isinstance(value, dict):
                raise UserError(f"{path}: {where}{name}={value}: is a section and holds fields.")
            _require_known_fields(value, hints[name], path, f"{where}{name}.")


def _config_path(words: list[str]) -> Path | None:
    """The file after `--config`, read before the rest because it sets their defaults."""
    for index, word in enumerate(words):
        if word == "--config" and index + 1 < len(words):
            return Path(local_path(words[index + 1]))
        if word.startswith("--config="):
            return Path(local_path(word.partition("=")[2]))
    return None


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields as one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, dict) and "class_path" not in value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _arguments(made: Namespace, class_: type | None) -> dict[str, Any]:
    """Split the parsed names into the function's own and the section's."""
    values = dict(vars(made))
    values.pop("config", None)
    if class_ is None:
        return values
    own = {field.name: values.pop(field.name) for field in fields(class_)}
    return values | {"settings": class_(**own)}


def _summary(function: Callable[..., Any]) -> str:
    return " ".join((function.__doc__ or "").partition("Args:")[0].split())


def _one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", Text.from_ansi(str(error)).plain).strip()
    return text if len(text) <= 300 else text[:297] + "..."

"""Lightning loggers and callbacks by class path: specifications in a recipe -> objects for the trainer.

A class that cannot be imported, constructed or used is a UserError that names it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from traceback import walk_tb
from typing import Any, NotRequired, TypedDict, TypeVar

from foundation.errors import UserError

Plugin = TypeVar("Plugin")


class ClassSpec(TypedDict):
    """A class and the arguments to construct it with."""

    class_path: str
    """Dotted path, such as `pytorch_lightning.loggers.CSVLogger`."""
    init_args: NotRequired[dict[str, Any]]
    """Keyword arguments of its constructor: plain values, lists and mappings."""


def import_class(option: str, spec: ClassSpec) -> Any:
    """The object at a class path. `option`: the option that gave it, for the UserError where it cannot be imported."""
    module, _, name = spec["class_path"].rpartition(".")
    named = f"{option}={spec['class_path']}"
    if not (module and name):
        raise UserError(f"{named}: give the whole path of a class, such as pytorch_lightning.loggers.CSVLogger.")
    try:
        imported = import_module(module)
    except Exception as error:  # whatever a module may do when it is imported
        missing = getattr(error, "name", None) or module
        raise UserError(
            f"{named}: cannot be imported ({_one_line(error)}). {_install_hint(missing.partition('.')[0])}, "
            "or put the folder of a module of your own on PYTHONPATH."
        ) from None
    if not hasattr(imported, name):
        lower = {each.lower(): each for each in dir(imported)}
        similar = get_close_matches(name.lower(), list(lower), 1)
        remedy = f"Did you mean {lower[similar[0]]}?" if similar else "Name a class of it."
        raise UserError(f"{named}: {module} has no {name}. {remedy}")
    return getattr(imported, name)


def construct(option: str, specs: Sequence[ClassSpec], base: type[Plugin]) -> list[Plugin]:
    """Construct every class, each of which must be a subclass of `base`, else a UserError."""
    return [_construct(option, spec, base) for spec in specs]


def _construct(option: str, spec: ClassSpec, base: type[Plugin]) -> Plugin:
    class_ = import_class(option, spec)
    named = f"{option}={spec['class_path']}"
    if not (isinstance(class_, type) and issubclass(class_, base)):
        raise UserError(f"{named}: must be a subclass of {base.__module__}.{base.__name__}.")
    arguments = spec.get("init_args", {})
    try:
        return class_(**arguments)
    except ImportError as error:
        required = re.search(r"Requirement '([\w.-]+)", str(error))  # as Lightning says it
        package = required[1] if required else (error.name or "PACKAGE").partition(".")[0]
        raise UserError(f"{named}: needs a package ({_one_line(error)}). {_install_hint(package)}.") from None
    except Exception as error:  # whatever its constructor raises, for what the user gave
        raise UserError(f"{named}: cannot be constructed with {arguments} ({_one_line(error)}).") from None


@contextmanager
def faults_named(plugins: Sequence[object]) -> Iterator[None]:
    """Turn exceptions from the plugins' methods, and Lightning's complaints about plugins, into UserErrors that name the
    class."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        from lightning_fabric.utilities.exceptions import MisconfigurationException  # not when a config is read
        from pytorch_lightning.loggers import Logger

        if plugins and isinstance(error, MisconfigurationException):
            raise UserError(f"callbacks: refused by Lightning ({_one_line(error)}).") from None
        owners = {id(plugin): type(plugin) for plugin in plugins}
        frames = [frame for frame, _ in walk_tb(error.__traceback__)]
        of_signal = frames[-1].f_globals.get("__name__") == "train.signals"  # which may arrive inside any method
        for frame in frames:
            class_ = owners.get(id(frame.f_locals.get("self")))
            if class_ is not None and not of_signal and not os.environ.get("KEYART_TRACEBACK"):
                another = ", and so does one with another --logger" if issubclass(class_, Logger) else ""
                raise UserError(
                    f"{class_.__module__}.{class_.__qualname__}: failed ({_one_line(error)}). KEYART_TRACEBACK=1 before the "
                    f"command shows where. The same command resumes{another}."
                ) from None
        raise


def _install_hint(package: str) -> str:
    return f"Install it, as uv run --with {package} keyart fit SHARDS RUN does"


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else text[:297] + "..."

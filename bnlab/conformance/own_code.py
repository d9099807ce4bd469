"""Code of the user's own that `--module` names: found, called, and kept from ending the program or writing results."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any

from bnlab.errors import BnlabError, ConfigError, did_you_mean


@contextlib.contextmanager
def own_code(named: str, doing: str | Callable[[], str], way_out: str = "") -> Iterator[None]:
    """Run code of the user's: what it prints goes to stderr, what it raises becomes an error: `named`, then `doing`.

    Errors: ConfigError for an exception; BnlabError (exit code 1) where it ends the program, as `sys.exit` does.
    """
    try:
        with _stdout_as_stderr():
            yield
    except (BnlabError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:
        said = f"{named}: {doing if isinstance(doing, str) else doing()} fails: {described(error)}"
        raise ConfigError("\n".join([said, *([way_out] if way_out else [])])) from error
    except BaseException as error:  # SystemExit: a script that parses the command line
        raise BnlabError(
            f"{named}: {doing if isinstance(doing, str) else doing()} ends the program: {described(error)}\n"
            "let it return, or raise an exception"
        ) from error


@contextlib.contextmanager
def _stdout_as_stderr() -> Iterator[None]:
    """Also of what is written past Python, as by a process that is started."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def described(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def load_factory(path: str) -> Callable[..., Any]:
    """Return what `package.module:name` or `folder/file.py:name` names, importable or in the working directory.

    Errors: ConfigError; as of `own_code`.
    """
    name, colon, attribute = path.rpartition(":")
    if not (name and colon and attribute):
        raise ConfigError(f"--module {path}: must be package.module:factory, such as mylayers:make_norm")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    with own_code(f"--module {path}", f"importing {name}"):
        module = _of_file(path, Path(name)) if name.endswith(".py") else _of_name(path, name)
    try:
        factory = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        known = [key for key, value in vars(module).items() if callable(value)]
        raise ConfigError(f"--module {path}: {name} has no {attribute}{did_you_mean(attribute, known)}") from error
    if not callable(factory):
        raise ConfigError(f"--module {path}: {attribute} must be a function or a class")
    return factory


def _of_name(path: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        near = did_you_mean(name, [module.name for module in pkgutil.iter_modules([str(Path.cwd())])])
        raise ConfigError(f"--module {path}: no module {name} in this folder or installed{near}") from error


def _of_file(path: str, file: Path) -> ModuleType:
    """Import a file as its folder's own scripts see it."""
    if not file.is_file():
        raise ConfigError(f"--module {path}: there is no file {file}")
    sys.path.insert(0, str(file.resolve().parent))
    name = file.stem if file.stem not in sys.modules else f"{file.stem}_of_module"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module

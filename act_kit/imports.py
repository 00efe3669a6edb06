"""The user's own Python objects by name, ``MODULE:NAME``; an error in their code becomes one line with its place."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from act_kit.errors import ConfigError, did_you_mean

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_object_name(text: str) -> bool:
    """Return True if a text has the form ``MODULE:NAME``."""
    return _NAME.fullmatch(text) is not None


def import_object(name: str) -> tuple[ModuleType, Any]:
    """Import the module of ``MODULE:NAME``, on ``sys.path`` or in the current folder; return it and the object.

    Raises:
        ConfigError: There is none, or the code of the module fails; the message names the place.
    """
    module_name, _, path = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module = attempt(lambda: importlib.import_module(module_name), f"{name}: importing {module_name}")
    found: Any = module
    for part in path.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, [each for each in vars(found) if not each.startswith("_")])
            raise ConfigError(f"{name}: {module_name} has no '{part}'.{hint}")
        found = getattr(found, part)
    return module, found


def attempt(call: Callable[[], Any], what: str) -> Any:
    """Return what the user's code returns; its error becomes one line with the place of the failure.

    Raises:
        ConfigError: It fails.
    """
    try:
        return call()
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith("<") and frame.filename != __file__]
        own = [frame for frame in own if Path(frame.filename).parent != Path(importlib.__file__).parent]
        place = f" at {own[-1].filename}, line {own[-1].lineno}" if own else ""
        if isinstance(error, SyntaxError):
            place = f" at {error.filename}, line {error.lineno}"
        hint = ""
        if isinstance(error, ModuleNotFoundError) and not own:
            hint = f" Fix: run act in the folder of {error.name}.py, or put that folder on PYTHONPATH"
        raise ConfigError(f"{what} failed{place}: {type(error).__name__}: {error}.{hint}") from error

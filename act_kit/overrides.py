"""From YAML and the command line to frozen dataclasses: nothing below the command line ever sees a DictConfig.

Hydra composes ``configs/<verb>.yaml`` with the ``key=value`` overrides; the result must have exactly the fields and
types of a dataclass of :mod:`act_kit.config`, whose ``__post_init__`` says which values make sense.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from act_kit.config import (
    ChunkingConfig,
    ComputeConfig,
    DaggerConfig,
    PolicyConfig,
    ReplayConfig,
    RolloutConfig,
    SelectionConfig,
    SimConfig,
    TeleopConfig,
    TrainConfig,
    TrainerConfig,
)
from act_kit.errors import ConfigError, did_you_mean

T = TypeVar("T")

_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
_WORDS = ("true", "false", "null", "nan", "inf", "none")
"""What Hydra reads as something else than text."""


def compose(name: str, kind: type[T], overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> T:
    """Compose ``configs/<name>.yaml`` with Hydra overrides and flags into a ``kind``.

    ``flags`` are values by dotted key, None for a flag that was not given; they win, and are never parsed, so they may
    hold any character. Nor are the values of options that are text, unless they are quoted.

    Raises:
        ConfigError: An unknown key (with the closest that exists), a value of the wrong type or out of range.
    """
    texts = _texts(kind)
    given: dict[str, Any] = {}
    parsed: list[str] = []
    for override in overrides:
        _check_override(override, kind)
        key, _, value = override.partition("=")
        if key in texts and value[:1] not in ("'", '"'):
            given[key] = value
        else:
            given.pop(key, None)
            parsed.append(override)
    values = _compose_with_hydra(name, parsed)
    for key, value in {**given, **(flags or {})}.items():
        if value is not None:
            *parents, leaf = key.split(".")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[leaf] = value
    return build(kind, values)


_HYDRA = threading.Lock()
"""Hydra has one state for the whole process."""


def _compose_with_hydra(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose plain values, and leave Hydra as it was: the user may be inside their own ``@hydra.main``."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir, version
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _HYDRA:
        theirs, base = GlobalHydra.instance().hydra, version.VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(files("act_kit") / "configs"), version_base="1.3"):
                composed = hydra_compose(name, overrides=list(overrides))
                values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, overrides)) from error
        finally:
            GlobalHydra.instance().hydra = theirs
            version.VersionBase.instance().version_base = base
    return values


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from nested plain values, which must be its fields and of their types.

    Raises:
        ConfigError: A field is missing, unknown, or of another type.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"There is no option '{prefix}{key}'.{closest(str(key), list(known))}")
    arguments: dict[str, Any] = {}
    for key, field in known.items():
        if key not in values:
            raise ConfigError(f"The option '{prefix}{key}' is missing.")
        arguments[key] = _convert(prefix + key, values[key], str(field.type))
    return kind(**arguments)


_SECTIONS: dict[str, type] = {
    "PolicyConfig": PolicyConfig,
    "ChunkingConfig": ChunkingConfig,
    "TrainerConfig": TrainerConfig,
    "ComputeConfig": ComputeConfig,
    "SelectionConfig": SelectionConfig,
    "SimConfig": SimConfig,
    "TeleopConfig": TeleopConfig,
    "RolloutConfig": RolloutConfig,
    "DaggerConfig": DaggerConfig,
    "ReplayConfig": ReplayConfig,
}


def _convert(key: str, value: Any, type_name: str) -> Any:
    if type_name in _SECTIONS:
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{key}' is a group of options, not {value!r}.")
        return build(_SECTIONS[type_name], value, prefix=f"{key}.")
    if type_name == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type_name == "tuple[str, ...]":
        if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
            raise ConfigError(f"{key}={value!r}: expected a list of names, such as [a,b].")
        return tuple(value)
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[type_name]
    if type(value) is not wanted:
        raise ConfigError(f"{key}={value!r}: expected {type_name}, not {type(value).__name__}.")
    return value


def options(kind: type) -> list[str]:
    """List the dotted keys of a configuration."""
    return [key for key, _ in _fields(kind)]


def _texts(kind: type) -> set[str]:
    """Return the dotted keys of the options that are text."""
    types = {key: field.type for key, field in _fields(kind)}
    return {key for key, type_name in types.items() if type_name == "str"}


def _fields(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield every option's dotted key and field."""
    for field in dataclasses.fields(kind):
        section = _SECTIONS.get(str(field.type))
        if section:
            yield from _fields(section, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def closest(key: str, keys: Sequence[str]) -> str:
    """Return ``" Did you mean …?"``: the option of that name in another group, or the one spelled most like it."""
    leaf = key.rpartition(".")[2]
    same = [known for known in keys if known.rpartition(".")[2] == leaf]
    return f" Did you mean '{same[0]}'?" if len(same) == 1 else did_you_mean(key, keys)


def _not_an_override(word: str, kind: type) -> str:
    """Say what to type instead of a word without ``=``."""
    keys = options(kind)
    if word in keys:
        return f"'{word}' has no value. Fix: {word}=VALUE"
    hint = closest(word, keys) if "/" not in word else ""
    return f"'{word}' is not an option. Write key=value, such as {keys[-1]}=….{hint}"


def _check_override(override: str, kind: type) -> None:
    """Refuse an override for which Hydra, which takes a while to load, has no better words.

    Raises:
        ConfigError: Its key or its preset does not exist, or it is not of the form key=value.
    """
    keys = options(kind)
    groups = {known.partition(".")[0] for known in keys if "." in known}
    key, is_override, value = override.partition("=")
    if not is_override:
        raise ConfigError(_not_an_override(override, kind))
    key = key.lstrip("+~")
    if key not in keys and key not in groups:
        raise ConfigError(f"There is no option '{key}'.{closest(key, keys)}")
    if override[0] in "+~":
        raise ConfigError(f"'{override}': options can be neither added nor removed; write {key}=value.")
    if key == "policy" and value not in presets():
        raise ConfigError(f"policy={value}: choose from {', '.join(presets())}.{did_you_mean(value, presets())}")


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Turn one of Hydra's errors into a line that names the override at fault and the fix."""
    for override in overrides:
        key, _, value = override.partition("=")
        if "," in value and value[0] not in "[{'\"":
            several = f"--seeds {value}" if key == "trainer.seed" else "one command for each value."
            return f"{override}: {key} takes one value. Fix: {several}"
    return f"{' '.join(overrides)}: {str(error).splitlines()[0]}"


def presets() -> list[str]:
    """Return the names that ``policy=`` takes."""
    folder = files("act_kit") / "configs" / "policy"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain values, which :func:`build` reads back."""
    return dataclasses.asdict(config)


def option(config: Any, key: str) -> Any:
    """Return the value of a dotted key."""
    return functools.reduce(getattr, key.split("."), config)


def override(key: str, value: Any) -> str:
    """Write ``key=value`` in Hydra's grammar, so that :func:`compose` reads that very value, whatever it holds."""
    return f"{key}={_literal(value)}"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return f"[{','.join(map(_literal, value))}]"
    if not isinstance(value, str):
        return repr(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    escaped = re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + (found[2] and "\\'"), value)
    return "'" + re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", escaped) + "'"  # no interpolation


@functools.cache
def _presets() -> dict[str, TrainConfig]:
    """Return the presets of ``act train`` by what chooses them; the default by nothing, and first."""
    folder = files("act_kit") / "configs" / "policy"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    choices = ["", *(f"policy={name}" for name in names)]
    return {choice: compose("train", TrainConfig, [choice] if choice else []) for choice in choices}


def preset_of(config: TrainConfig) -> tuple[str, TrainConfig]:
    """Return the preset that a configuration differs from in the fewest options, and the override that chooses it."""
    choice = min(_presets(), key=lambda choice: len(_differing(config, _presets()[choice])))
    return choice, _presets()[choice]


def train_overrides(config: TrainConfig, changes: Mapping[str, Any]) -> list[str]:
    """Return the overrides of ``act train`` that compose to ``config`` with ``changes``, values by dotted key."""
    choice, preset = preset_of(config)
    wanted = {key: option(config, key) for key in options(TrainConfig)} | dict(changes)
    written = [override(key, value) for key, value in wanted.items() if value != option(preset, key)]
    return [choice, *written] if choice else written


def _differing(config: TrainConfig, other: TrainConfig) -> list[str]:
    return [key for key in options(TrainConfig) if option(config, key) != option(other, key)]


def given_options(overrides: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """Return the options of a training that were given, by dotted key; of a preset all it sets but steps."""
    known = options(TrainConfig)
    keys = [key for key, value in flags.items() if value is not None]
    for override in overrides:
        key = override.partition("=")[0]
        if key in known:
            keys.append(key)
        elif key == "policy":
            configs = [compose("train", TrainConfig, [f"policy={name}"]) for name in presets()]
            for of_preset in known:
                values = {option(config, of_preset) for config in configs}
                keys += [of_preset] if len(values) > 1 and of_preset != "trainer.steps" else []
    return list(dict.fromkeys(keys))

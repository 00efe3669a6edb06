"""Composition of the configuration dataclasses from YAML and the command line.

Hydra composes ``configs/<verb>.yaml`` with the ``key=value`` overrides. The result must have exactly the fields and
types of a dataclass of :mod:`act_kit.config`, whose ``__post_init__`` checks the values. No other module uses a
DictConfig.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from act_kit.config import (
    ACTConfig,
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
"""Words that Hydra does not read as strings."""


def compose(name: str, kind: type[T], overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> T:
    """Compose ``configs/<name>.yaml`` with Hydra overrides and flags into a ``kind``.

    ``flags`` are values by dotted key, None for a flag that was not given. They take precedence and are never parsed,
    so they may hold any character; neither are the unquoted values of string options.

    Raises:
        ConfigError: A key is unknown (the message suggests the closest), or a value has the wrong type or is out of
            range.
    """
    known = _all_fields(kind)
    defaults = options(kind)
    given: dict[str, Any] = {}
    parsed: list[str] = []
    for override in overrides:
        _check_override(override, kind)
        key, _, value = override.partition("=")
        if key in known and known[key].type == "str" and value[:1] not in ("'", '"'):
            given[key] = value
        else:
            given.pop(key, None)
            parsed.append(override if key in defaults or key not in known else f"++{override}")
    values = _compose_with_hydra(name, parsed)
    for key, value in {**given, **(flags or {})}.items():
        if value is not None:
            *parents, leaf = key.split(".")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[leaf] = value
    if "policy" in values:
        values["policy"] = _fit_to_model(values["policy"], {override.partition("=")[0] for override in overrides})
    return build(kind, values)


def _fit_to_model(policy: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the options of the model ``policy.name``: those of the preset that it has, else its own defaults.

    An option that was given and that it does not have stays, to be refused by :func:`build`.
    """
    fitted = to_dict(PolicyConfig.find(policy["name"])())
    for key, value in policy.items():
        if key in fitted or f"policy.{key}" in given:
            fitted[key] = value
    return fitted


_HYDRA = threading.Lock()
"""Lock for Hydra, which has one state per process."""


def _compose_with_hydra(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Compose plain values and restore Hydra's state, because the caller may be inside their own ``@hydra.main``."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir, version
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    with _HYDRA:
        caller_hydra, base = GlobalHydra.instance().hydra, version.VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(files("act_kit") / "configs"), version_base="1.3"):
                composed = hydra_compose(name, overrides=list(overrides))
                values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, overrides)) from error
        finally:
            GlobalHydra.instance().hydra = caller_hydra
            version.VersionBase.instance().version_base = base
    return values


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from nested plain values, which must match its fields and their types.

    Raises:
        ConfigError: A field is missing, unknown, or of the wrong type.
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
    "PolicyConfig": ACTConfig,
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
            raise ConfigError(f"{key}={value!r}: expected a group of options.")
        section = _SECTIONS[type_name]
        if type_name == "PolicyConfig":
            section = PolicyConfig.find(value.get("name", ""))
        return build(section, value, prefix=f"{key}.")
    if type_name == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type_name == "tuple[str, ...]":
        if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
            raise ConfigError(f"{key}={value!r}: expected a list of names, such as [a,b].")
        return tuple(value)
    expected = {"int": int, "float": float, "bool": bool, "str": str}[type_name]
    if type(value) is not expected:
        raise ConfigError(f"{key}={value!r}: expected {type_name}, not {type(value).__name__}.")
    return value


def options(config: Any) -> list[str]:
    """List the dotted keys of a configuration, or of a class of configurations with its default model."""
    return [key for key, _ in _fields(config)]


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield every option's dotted key and field."""
    for field in dataclasses.fields(config):
        if str(field.type) in _SECTIONS:
            yield from _fields(getattr(config, field.name), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def _all_fields(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """Return every option's field by its dotted key, including the options of all registered models."""
    fields = dict(_fields(kind))
    if "policy.name" in fields:
        for model in PolicyConfig.kinds.values():
            fields |= dict(_fields(model, "policy."))
    return fields


def closest(key: str, keys: Sequence[str]) -> str:
    """Return ``" Did you mean …?"`` with the option of that name in another group, or the most similar key."""
    leaf = key.rpartition(".")[2]
    same = [known for known in keys if known.rpartition(".")[2] == leaf]
    return f" Did you mean '{same[0]}'?" if len(same) == 1 else did_you_mean(key, keys)


def _check_override(override: str, kind: type) -> None:
    """Refuse an invalid override before Hydra, which is slow to load and has less helpful messages, parses it.

    Raises:
        ConfigError: Its key or its preset does not exist, or it is not of the form key=value.
    """
    keys = list(_all_fields(kind))
    groups = {known.partition(".")[0] for known in keys if "." in known}
    key, has_value, value = override.partition("=")
    if not has_value and key in keys:
        raise ConfigError(f"'{key}' has no value. Fix: {key}=VALUE")
    if not has_value:
        hint = closest(key, keys) if "/" not in key else ""
        raise ConfigError(f"'{key}' is not an option: expected key=value, such as {keys[-1]}=….{hint}")
    key = key.lstrip("+~")
    if key not in keys and key not in groups:
        raise ConfigError(f"There is no option '{key}'.{closest(key, keys)}")
    if override[0] in "+~":
        raise ConfigError(f"'{override}': options can be neither added nor removed. Fix: {key}=VALUE")
    if key == "policy" and value not in presets():
        raise ConfigError(f"policy={value}: choose from: {', '.join(presets())}.{did_you_mean(value, presets())}")


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Convert one of Hydra's errors to a line that names the invalid override and the fix."""
    for override in overrides:
        key, _, value = override.partition("=")
        if "," in value and value[0] not in "[{'\"":
            fix = f"--seeds {value}" if key == "trainer.seed" else "one command per value."
            return f"{override}: {key} takes one value. Fix: {fix}"
    return f"{' '.join(overrides)}: {str(error).splitlines()[0]}"


def presets() -> list[str]:
    """Return the names of the presets, the values of ``policy=``."""
    folder = files("act_kit") / "configs" / "policy"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain values, the inverse of :func:`build`."""
    return dataclasses.asdict(config)


def option(config: Any, key: str) -> Any:
    """Return the value of a dotted key; None for an option of another model."""
    return functools.reduce(lambda part, name: getattr(part, name, None), key.split("."), config)


def override(key: str, value: Any) -> str:
    """Return ``key=value`` in Hydra's grammar, escaped so that :func:`compose` reads exactly that value."""
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
    """Return the presets of ``act train`` by the override that selects them; the default is first, under ""."""
    composed = {"": compose("train", TrainConfig)}
    for name in presets():
        composed[f"policy={name}"] = compose("train", TrainConfig, [f"policy={name}"])
    return composed


def preset_of(config: TrainConfig) -> tuple[str, TrainConfig]:
    """Return the preset closest to a configuration (fewest differing options), after the override that selects it."""
    candidates = {choice: preset for choice, preset in _presets().items() if type(preset.policy) is type(config.policy)}
    if not candidates:
        choice = f"policy.name={config.policy.name}"
        return choice, compose("train", TrainConfig, [choice])
    choice = min(candidates, key=lambda choice: len(_differing(config, candidates[choice])))
    return choice, candidates[choice]


def train_overrides(config: TrainConfig, changes: Mapping[str, Any]) -> list[str]:
    """Return the overrides of ``act train`` that compose to ``config`` with ``changes``, values by dotted key."""
    choice, preset = preset_of(config)
    values = {key: option(config, key) for key in options(config)} | dict(changes)
    overrides = [override(key, value) for key, value in values.items() if value != option(preset, key)]
    return [choice, *overrides] if choice else overrides


def _differing(config: TrainConfig, other: TrainConfig) -> list[str]:
    return [key for key in options(config) if option(config, key) != option(other, key)]


def given_options(overrides: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of the training options that were given; a preset counts as all it sets except steps."""
    known = list(_all_fields(TrainConfig))
    keys = [key for key, value in flags.items() if value is not None]
    for override in overrides:
        key = override.partition("=")[0]
        if key in known:
            keys.append(key)
        elif key == "policy":
            configs = [compose("train", TrainConfig, [f"policy={name}"]) for name in presets()]
            for preset_key in known:
                values = {option(config, preset_key) for config in configs}
                if len(values) > 1 and preset_key != "trainer.steps":
                    keys.append(preset_key)
    return list(dict.fromkeys(keys))

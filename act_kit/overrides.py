"""Composition of options from presets, overrides ``key=value`` and flags, by Hydra.

Hydra's result becomes a dataclass of :mod:`act_kit.config` at once: no other module uses a DictConfig.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import as_file, files
from typing import Any, TypeVar

from act_kit import options
from act_kit.config.policy import PolicyConfig, load_head, load_own_head
from act_kit.config.training import TrainConfig
from act_kit.errors import ConfigError, did_you_mean
from act_kit.options import Option, Options

T = TypeVar("T", bound=Options)

DEFAULT_PRESET = "act_small"


def compose(
    kind: type[T], overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None, base: T | None = None
) -> T:
    """Compose ``base`` (by default, the default options), overrides in Hydra's grammar, and flags, in this order.

    ``flags`` are values by dotted key, None for a flag that was not given. They take precedence and are never parsed,
    so they may hold any character; neither are the unquoted values of string options.

    Raises:
        ConfigError: A key is unknown (the message suggests the closest), or a value has the wrong type or is out of
            range.
    """
    given: dict[str, Any] = {}
    parsed: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("policy", "policy.name"):
            load_head(value.partition("_")[0])  # declares its options; the name of a preset begins with that of a head
        if key == "policy.head" and value:
            overrides = [*overrides, f"policy.name={load_own_head(value).name}"]
    known, defaults = all_options(kind), options.declared(base or kind)
    for override in overrides:
        _check_override(override, list(known))
        key, _, value = override.partition("=")
        if key in known and known[key].type == "str" and value[:1] not in ("'", '"'):
            given[key] = value
        else:
            given.pop(key, None)
            parsed.append(override if key in defaults or key not in known else f"++{override}")
    values = _compose_with_hydra(base or kind(), parsed, has_preset=base is None and kind is TrainConfig)
    given |= {key: value for key, value in (flags or {}).items() if value is not None}
    for key, value in given.items():
        *parents, leaf = key.split(".")
        inner = values
        for parent in parents:
            inner = inner[parent]
        inner[leaf] = value
    if "policy" in values:
        values["policy"] = _fit_to_model(values["policy"], {override.partition("=")[0] for override in overrides})
    return options.build(kind, values)


def all_options(kind: type[Options]) -> dict[str, Option]:
    """Return every option by its dotted key, including the options of all registered models."""
    found = options.declared(kind)
    if "policy.name" in found:
        for model in PolicyConfig.kinds.values():
            found |= options.declared(model, "policy.")
    return found


def _fit_to_model(policy: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Return the options of the model ``policy.name``: those of the preset that it has, else its own defaults.

    An option that was given and that it does not have stays, to be refused by :func:`act_kit.options.build`.
    """
    fitted = options.to_dict(PolicyConfig.kind_of(policy)())
    for key, value in policy.items():
        if key in fitted or f"policy.{key}" in given:
            fitted[key] = value
    return fitted


_HYDRA = threading.Lock()
"""Lock for Hydra, which has one state per process."""


def _compose_with_hydra(base: Options, overrides: Sequence[str], *, has_preset: bool) -> dict[str, Any]:
    """Compose plain values and restore Hydra's state, because the caller may be inside their own ``@hydra.main``."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir, version
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    node = options.to_dict(base)
    if isinstance(base, TrainConfig):
        node["defaults"] = ["_self_", {"policy": DEFAULT_PRESET if has_preset else None}]
    with _HYDRA:
        caller_hydra, version_base = GlobalHydra.instance().hydra, version.VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        ConfigStore.instance().store("act_kit", node)
        try:
            with initialize_config_dir(str(files("act_kit") / "configs"), version_base="1.3"):
                composed = hydra_compose("act_kit", overrides=list(overrides))
                values: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, overrides)) from error
        finally:
            del ConfigStore.instance().repo["act_kit.yaml"]
            GlobalHydra.instance().hydra = caller_hydra
            version.VersionBase.instance().version_base = version_base
    return values


def _check_override(override: str, keys: list[str]) -> None:
    """Refuse an invalid override before Hydra, which is slow to load and has less helpful messages, parses it.

    Raises:
        ConfigError: Its key or its preset does not exist, or it is not of the form key=value.
    """
    groups = {known.partition(".")[0] for known in keys if "." in known}
    key, has_value, value = override.partition("=")
    if not has_value and key in keys:
        raise ConfigError(f"'{key}' has no value. Fix: {key}=VALUE")
    if not has_value:
        hint = options.closest(key, keys) if "/" not in key else ""
        raise ConfigError(f"'{key}' is not an option: expected key=value, such as {keys[-1]}=….{hint}")
    key = key.lstrip("+~")
    if key not in keys and key not in groups:
        raise ConfigError(f"There is no option '{key}'.{options.closest(key, keys)}")
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


@functools.cache
def _compose_preset(choice: str) -> TrainConfig:
    """Return the configuration of the preset that an override selects; "" selects the default."""
    return compose(TrainConfig, [choice] if choice else [])


def preset_of(config: TrainConfig) -> tuple[str, TrainConfig]:
    """Return the preset closest to a configuration (fewest differing options), after the override that selects it."""
    head = config.policy.name
    own = [f"policy={name}" for name in presets() if name.partition("_")[0] == head]
    choices = ["", *own] if head == TrainConfig().policy.name else own or [f"policy.name={head}"]
    candidates = [(choice, _compose_preset(choice)) for choice in choices]
    return min(candidates, key=lambda item: len(options.differing_keys(config, item[1])))


def train_overrides(config: TrainConfig, changes: Mapping[str, Any]) -> list[str]:
    """Return the overrides of ``act train`` that compose to ``config`` with ``changes``, values by dotted key."""
    choice, preset = preset_of(config)
    overrides = [choice] if choice else []
    for key in options.declared(config):
        value = changes.get(key, options.get(config, key))
        if value != options.get(preset, key):
            overrides.append(options.override(key, value))
    return overrides


def given_options(overrides: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of the training options that were given.

    A preset counts as every option that any preset sets, except the number of steps.
    """
    keys = [key for key, value in flags.items() if value is not None]
    for override in overrides:
        key = override.partition("=")[0]
        keys += _keys_of_presets() if key == "policy" else [key]
    return list(dict.fromkeys(keys))


@functools.cache
def _keys_of_presets() -> list[str]:
    """Return the dotted keys of the options in the files of the presets, except the number of steps."""
    from omegaconf import OmegaConf

    keys: list[str] = []
    for name in presets():
        with as_file(files("act_kit") / "configs" / "policy" / f"{name}.yaml") as path:
            groups: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
        for group, values in groups.items():
            keys += [f"{group}.{key}" for key in values if group != "defaults"]
    return [key for key in dict.fromkeys(keys) if key != "trainer.steps"]

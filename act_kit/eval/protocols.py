"""Evaluation protocols: those of published projects by name, and files of the user's own.

A protocol is a preset of :class:`~act_kit.config.evaluation.EvalConfig`: options that are given besides win, and then
the results name what was changed. The files of the named ones, with their sources, are in ``act_kit/configs/protocol``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from act_kit import options
from act_kit.config.evaluation import EvalConfig, ProtocolConfig
from act_kit.errors import ActKitError, ConfigError, did_you_mean
from act_kit.files import read_text, read_yaml
from act_kit.options import closest, require
from act_kit.overrides import compose

_FOLDER = files("act_kit") / "configs" / "protocol"

_OF_GROUP = tuple(field.name for field in fields(ProtocolConfig) if field.name != "name")

_OTHERS = ("episodes", "seed", "served")
"""Options outside the group that a protocol may set."""


def protocol_names() -> list[str]:
    """Return the names of the protocols that act_kit has."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml"))


def read_protocol(name: str) -> dict[str, Any]:
    """Return the values of a protocol, given its name or its YAML file, by the dotted keys of their options.

    Raises:
        ConfigError: There is no such protocol, or its file is damaged or has an unknown, repeated or invalid value.
    """
    if name in protocol_names():
        with as_file(_FOLDER / f"{name}.yaml") as path:
            return _read(path)
    if not Path(name).is_file():
        names = protocol_names()
        hint = did_you_mean(name, names)
        raise ConfigError(f"'{name}' is not a protocol; choose from: {', '.join(names)}, or a YAML file.{hint}")
    return _read(Path(name))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
        _refuse_repeated_keys(path)
        require(isinstance(values, dict), "expected lines of the form key: value.")
        flat: dict[str, Any] = {}
        for key, value in values.items():
            known = (*_OF_GROUP, *_OTHERS)
            require(key in known, f"there is no key '{key}'.{did_you_mean(str(key), known)}")
            if key == "served":
                require(isinstance(value, dict), f"served={value!r}: expected a group of options.")
                flat |= {f"served.{inner}": inner_value for inner, inner_value in value.items()}
            else:
                flat[f"protocol.{key}" if key in _OF_GROUP else key] = value
        _apply(EvalConfig(), flat)
    except (ActKitError, OSError) as error:
        raise ConfigError(f"The protocol {path}: {error}") from error
    return flat


def _refuse_repeated_keys(path: Path) -> None:
    import yaml

    def keys(node: yaml.Node | None) -> Iterator[str]:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            yield f"{key.value}"
            yield from (f"{key.value}.{inner}" for inner in keys(value))

    seen: set[str] = set()
    for key in keys(yaml.compose(read_text(path), Loader=yaml.CSafeLoader)):
        require(key not in seen, f"the key '{key}' is repeated. Fix: leave one of its lines.")
        seen.add(key)


def _apply(base: EvalConfig, values: Mapping[str, Any]) -> EvalConfig:
    """Return ``base`` with other values, given by dotted key."""
    nested = options.to_dict(base)
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        inner = nested[group] if group else nested
        require(name in inner, f"There is no option '{key}'.{closest(key, list(options.declared(base)))}")
        inner[name] = value
    return options.build(EvalConfig, nested)


def compose_evaluation(
    overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None, base: EvalConfig | None = None
) -> EvalConfig:
    """Compose ``base``, the protocol that ``--protocol`` names, the other overrides, and the flags, in this order.

    Raises:
        ConfigError: See :func:`read_protocol` and :func:`~act_kit.overrides.compose`.
    """
    others: list[str] = []
    name = (flags or {}).get("protocol.name")
    for override in overrides:
        key, is_given, value = override.partition("=")
        if key in ("protocol", "protocol.name") and is_given:
            name = name or value
        else:
            others.append(override)
    if name is not None:
        base = _apply(base or EvalConfig(), {**read_protocol(name), "protocol.name": name})
    return compose(EvalConfig, others, flags, base)


def protocol_provenance(config: EvalConfig, *, n_action_steps: int | None) -> dict[str, Any]:
    """Return the name of the protocol, its values in this evaluation, and those that were changed, as plain values.

    ``n_action_steps`` is what the agent executes of its chunks; None if it is not known.
    """
    own = options.to_dict(config.protocol)
    if own["n_action_steps"] and n_action_steps:
        own["n_action_steps"] = n_action_steps
    changed: dict[str, list[Any]] = {}
    for key, value in read_protocol(config.protocol.name).items():
        group, _, name = key.rpartition(".")
        used = own[name] if group == "protocol" else options.get(config, key)
        used = list(used) if isinstance(used, tuple) else used
        if used != value:
            changed[name] = [value, used]
    return {**own, "changed": changed}


def describe_protocol(provenance: Mapping[str, Any]) -> str:
    """Describe the protocol of an evaluation, given its provenance, in a line: name, changes and rules."""
    values: Mapping[str, Any] = provenance.get("protocol") or {**options.to_dict(ProtocolConfig()), "changed": {}}
    changes: list[str] = []
    for name, (before, after) in values["changed"].items():
        changes.append(f"{name} {before} → {after}")
    steps = values["settle_steps"]
    rules = [f"{values['horizon']} steps"]
    if steps:
        rules.append(f"after {steps} zero action{'s' if steps > 1 else ''}")
    if values["ends_at_success"]:
        rules.append("ends at the first success")
    if provenance.get("delay"):
        rules.append(f"answers delayed by {provenance['delay']} step{'s' if provenance['delay'] > 1 else ''}")
    name = f"{values['name']}, changed ({'; '.join(changes)})" if changes else values["name"]
    return f"{name}: {', '.join(rules)}"

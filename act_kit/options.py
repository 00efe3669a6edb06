"""Declaration of options, each once.

A field of a dataclass has the default, the range and the flag, and the class's docstring the meaning.
:class:`Options` checks the values; flags, YAML and overrides are derived from the fields.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import operator
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from act_kit.errors import ConfigError, did_you_mean

T = TypeVar("T", bound="Options")

Bound = float | None


def option(
    default: Any,
    *,
    min: Bound = None,
    max: Bound = None,
    above: Bound = None,
    below: Bound = None,
    multiple_of: int = 1,
    choices: Sequence[Any] = (),
    flag: str = "",
) -> Any:
    """Declare an option with a range or a flag, in a class derived from :class:`Options`.

    ``min`` and ``max`` belong to the range, ``above`` and ``below`` do not. ``flag`` is the option's flag on the
    command line, such as ``--seed``; an option without one is set by ``key=value``.
    """
    bounds = {"min": min, "max": max, "above": above, "below": below}
    metadata = {"bounds": bounds, "multiple_of": multiple_of, "choices": tuple(choices), "flag": flag}
    return dataclasses.field(default=default, metadata=metadata)


def read_help(docstring: str, heading: str) -> dict[str, str]:
    """Return the descriptions under a heading of a docstring by name, each in one line."""
    entries = inspect.cleandoc(docstring).partition(f"{heading}\n")[2].partition("\n\n")[0]
    found: dict[str, str] = {}
    for name, text in re.findall(r"^    (\w+): (.*(?:\n        .*)*)", entries, re.MULTILINE):
        found[name] = re.sub(r"\s+", " ", text.replace("``", ""))
    return found


class Options:
    """Base class of groups of options: frozen dataclasses whose docstrings describe every field as an attribute.

    Attributes:
        help: Meaning of each option, from the docstring.
    """

    help: ClassVar[dict[str, str]] = {}
    _prefix: ClassVar[str] = ""

    def __init_subclass__(cls, group: str = "") -> None:
        """Name the group in error messages, and read the meanings of the options."""
        if group:
            cls._prefix = f"{group}."
        cls.help = cls.help | read_help(cls.__doc__ or "", "Attributes:")

    def __post_init__(self) -> None:
        """Convert every option to its declared type.

        Raises:
            ConfigError: An option has another type, or is out of its range.
        """
        for field in _fields_of(self):
            key = self._prefix + field.name
            value = _convert(key, field, getattr(self, field.name))
            if field.metadata and value is not None:
                _check_range(key, value, field.metadata, self.help.get(field.name, ""))
            object.__setattr__(self, field.name, value)

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> type[Options]:
        """Return the class that plain values belong to: this one, or one of its subclasses."""
        return cls


def _fields_of(options: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(options)


def require(condition: bool, message: str) -> None:
    """Raise a ConfigError unless ``condition`` is true."""
    if not condition:
        raise ConfigError(message)


def _convert(key: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """Convert a value to its option's declared type, because NumPy's numbers cannot be written to a file."""
    if value is None and str(field.type).endswith("| None"):
        return None
    is_number = not isinstance(value, bool) and isinstance(value, numbers.Real)
    if field.type == "int":
        require(is_number and isinstance(value, numbers.Integral), f"{key}={value!r}: expected an integer.")
        return int(value)
    if str(field.type).removesuffix(" | None") == "float":
        require(is_number and math.isfinite(value), f"{key}={value!r}: expected a finite number.")
        return float(value)
    if field.type == "tuple[str, ...]":
        is_valid = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
        require(is_valid, f"{key}={value!r}: expected strings, such as [corner4].")
        return tuple(value)
    expected = {"str": "a string", "bool": "True or False"}.get(str(field.type), f"a {field.type}")
    default: Any = field.default
    is_same_group = isinstance(value, Options) and isinstance(default, Options) and value._prefix == default._prefix
    is_valid = is_same_group or isinstance(value, type(default))
    require(is_valid, f"{key}={value!r}: expected {expected}.")
    return value


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "min": (operator.ge, "{} or more"),
    "above": (operator.gt, "more than {}"),
    "max": (operator.le, "at most {}"),
    "below": (operator.lt, "less than {}"),
}
"""Condition of each kind of bound, and how a message describes it."""


def _check_range(key: str, value: Any, metadata: Mapping[str, Any], help: str) -> None:
    choices, bounds, multiple_of = metadata["choices"], metadata["bounds"], metadata["multiple_of"]
    if choices:
        hint = did_you_mean(value, choices) if isinstance(value, str) else ""
        require(value in choices, f"{key}={value}: choose from: {', '.join(map(str, choices))}.{hint}")
        return
    is_inside, expected = True, []
    for name, (is_met, text) in _BOUNDS.items():
        if bounds[name] is not None:
            is_inside = is_inside and is_met(value, bounds[name])
            expected.append(text.format(bounds[name]))
    if bounds["min"] is not None and bounds["max"] is not None:
        expected = [f"{bounds['min']} to {bounds['max']}"]
    if multiple_of != 1:
        is_inside = is_inside and value % multiple_of == 0
        expected.append(f"a multiple of {multiple_of}")
    require(is_inside, f"{key}={value}: expected {', '.join(expected)}. ({help})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A declared option.

    Attributes:
        default: Default.
        type: Type, as it is written in its declaration.
        flag: Flag on the command line; "" for none.
        help: Meaning.
    """

    default: Any
    type: str
    flag: str
    help: str


def declared(options: Options | type[Options], prefix: str = "") -> dict[str, Option]:
    """Return all options by dotted key, also those in groups; a class has its default groups."""
    found: dict[str, Option] = {}
    for field in _fields_of(options):
        value = getattr(options, field.name)
        if isinstance(value, Options):
            found |= declared(value, f"{prefix}{field.name}.")
        else:
            flag, text = field.metadata.get("flag", ""), options.help.get(field.name, "")
            found[prefix + field.name] = Option(default=field.default, type=str(field.type), flag=flag, help=text)
    return found


def flag_keys(kind: type[Options]) -> dict[str, str]:
    """Return the dotted keys of the options that have a flag, by the flag's name as an argument: ``init_from``."""
    keys: dict[str, str] = {}
    for key, each in declared(kind).items():
        if each.flag:
            keys[each.flag.removeprefix("--").replace("-", "_")] = key
    return keys


def by_key(kind: type[Options], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments, named as the flags of ``kind``, by the dotted keys of their options."""
    keys = flag_keys(kind)
    return {keys.get(name, name): value for name, value in arguments.items()}


def get(options: Any, key: str) -> Any:
    """Return the value of a dotted key; None for an option of another model."""
    return functools.reduce(lambda part, name: getattr(part, name, None), key.split("."), options)


def differing_keys(options: Options, other: Options) -> list[str]:
    """Return the dotted keys whose values differ."""
    return [key for key in declared(options) if get(options, key) != get(other, key)]


def to_dict(options: Any) -> dict[str, Any]:
    """Return options as nested plain values, the inverse of :func:`build`."""
    return dataclasses.asdict(options)


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build options from nested plain values, which must be complete.

    Raises:
        ConfigError: An option is missing, unknown, of the wrong type or out of its range.
    """
    known = {field.name: field.default for field in _fields_of(kind)}
    for key in values:
        require(key in known, f"There is no option '{prefix}{key}'.{closest(str(key), list(known))}")
    construct: Any = kind
    arguments: dict[str, Any] = {}
    for key, default in known.items():
        require(key in values, f"The option '{prefix}{key}' is missing.")
        value = values[key]
        if isinstance(default, Options):
            require(isinstance(value, Mapping), f"{prefix}{key}={value!r}: expected a group of options.")
            value = build(default.kind_of(value), value, f"{prefix}{key}.")
        arguments[key] = value
    return construct(**arguments)  # type: ignore[no-any-return]


def closest(key: str, known: Sequence[str]) -> str:
    """Return ``" Did you mean …?"`` with the option of that name in another group, or the most similar key."""
    leaf = key.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    depth = min((other.count(".") for other in same), default=0)
    outer = [other for other in same if other.count(".") == depth]
    return f" Did you mean '{outer[0]}'?" if len(outer) == 1 else did_you_mean(key, known)


def arguments_of(options: Options, *, without: Sequence[str] = ()) -> str:
    """Return the flags and overrides that differ from the defaults, for a shell; groups in ``without`` are left out."""
    defaults = type(options)()
    flags: list[str] = []
    overrides: list[str] = []
    for key, each in declared(options).items():
        value = get(options, key)
        if value == get(defaults, key) or key.partition(".")[0] in without:
            continue
        if each.flag:
            flags += [each.flag, str(value)]
        else:
            overrides.append(override(key, value))
    return shlex.join(flags + overrides)


_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*")
_WORDS = ("true", "false", "null", "nan", "inf", "none")
"""Words that Hydra does not read as strings."""


def override(key: str, value: Any) -> str:
    """Return ``key=value``, escaped so that :func:`act_kit.overrides.compose` reads exactly that value."""
    if isinstance(value, str) and value[:1] not in ("'", '"'):
        return f"{key}={value}"
    return f"{key}={_literal(value)}"


def _literal(value: Any) -> str:
    if value is None:
        return "null"
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

"""Flags that several verbs share, and those that the options of a configuration declare."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from act_kit import options

Workers = Annotated[
    int, typer.Option(min=0, help="Simulation processes; 0 = one per processor. Never changes a result.")
]
ExecutorName = Annotated[
    str, typer.Option("--executor", help="local, or ray (the cluster at RAY_ADDRESS). Never changes a result.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the content of the output folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Configuration options.", show_default=False),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the configuration and the plan, and exit.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the composed configuration as YAML, and exit.")
]
Device = Annotated[str, typer.Option(help="Device of the network: auto, cpu or cuda.")]

Token = Annotated[
    str,
    typer.Option(
        "--token",
        envvar="ACT_TOKEN",
        show_envvar=True,
        help="Token that a policy server requires of its clients.",
        show_default=False,
    ),
]

Flags = dict[str, Any]
"""Values of the declared flags by dotted key of their option; None for a flag that was not given."""

_TYPES: dict[str, Any] = {"int": int, "float": float, "float | None": float, "str": str}


def command(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the flags and the help that its signature and its docstring describe.

    Parameters before ``*`` are arguments, those after it options. Their help stands under ``Args:``, and may end in
    ``[default: …]``. An annotation that already describes an argument or an option is kept.
    """
    doc = inspect.cleandoc(verb.__doc__ or "")
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        help = options.read_help(doc, "Args:").get(parameter.name)
        if help:
            parameter = parameter.replace(annotation=Annotated[parameter.annotation, _describe(parameter, help)])
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    verb.__doc__ = doc.partition("\n\nArgs:\n")[0]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return verb


def _describe(parameter: inspect.Parameter, help: str) -> Any:
    """Return the argument or option of a parameter; a boolean one has no ``--no-…`` unless its default is None."""
    help, _, default = help.removesuffix("]").partition(" [default: ")
    show_default = default or parameter.default not in (None, inspect.Parameter.empty)
    if parameter.kind != inspect.Parameter.KEYWORD_ONLY:
        return typer.Argument(help=help, show_default=show_default)
    names = [f"--{parameter.name.replace('_', '-')}"] if parameter.annotation is bool else []
    return typer.Option(*names, help=help, show_default=show_default)


def with_flags(kind: type[options.Options]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator like :func:`command`, which replaces the parameter ``flags`` by the flags of ``kind``."""
    keys, known = options.flag_keys(kind), options.declared(kind)
    declared: list[inspect.Parameter] = []
    for name, key in keys.items():
        option = known[key]
        default = "" if option.default in ("", None) else f"  [default: {option.default}]"
        info = typer.Option(option.flag, help=option.help + default)
        annotation: Any = Annotated[_TYPES[option.type] | None, info]
        declared.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command(verb))
        def run(**arguments: Any) -> None:
            flags = {key: arguments.pop(name) for name, key in keys.items()}
            verb(flags=flags, **arguments)

        parameters = list(inspect.signature(verb).parameters.values())
        (place,) = [i for i, parameter in enumerate(parameters) if parameter.name == "flags"]
        parameters[place : place + 1] = declared
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def show_config(config: object, plan: Sequence[str] = ()) -> None:
    """Print a configuration as YAML, followed by the plan as comments."""
    from omegaconf import OmegaConf

    typer.echo(OmegaConf.to_yaml(OmegaConf.create(options.to_dict(config))), nl=False)
    for line in plan:
        typer.echo(f"# {line}")

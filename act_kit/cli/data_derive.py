"""``act data merge``, ``split`` and ``filter``: datasets made of others."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit.cli.console import console, say
from act_kit.cli.options import Overwrite
from act_kit.errors import ConfigError

if TYPE_CHECKING:
    from act_kit.datasets.ops import Derivations
    from act_kit.datasets.store import EpisodeStore

Dataset = Annotated[Path, typer.Argument(help="A dataset, or a folder of several.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder of the new dataset; of several, theirs.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Of the column 'random'.")]


def merge(
    datasets: Annotated[
        list[Path], typer.Argument(help="Datasets, or folders of several.", metavar="DATASET…", show_default=False)
    ],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Put several datasets into one; those of several tasks into one of each, which act train takes together.

    [dim]act data merge data/push-v3 data/push-v3-teleop --out data/push-v3-all[/]
    """
    from act_kit.datasets.ops import merge as merge_datasets

    _make(merge_datasets(_open(datasets)), out, ["merge", *map(str, datasets)], overwrite=overwrite)


def filter_(
    dataset: Dataset,
    where: Annotated[str, typer.Option(help="An expression over the columns of an episode.", show_default=False)],
    out: Out,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Keep the episodes for which an expression is true.

    Columns are episode, steps, task, source, succeeded, success_step, final_distance, path_efficiency, idle_fraction, \
clipped_fraction, jerk, gripper_switches, object_x to goal_z (the start), first_of_its_start and random: \
"random < 0.5" is half of the distinct starts, drawn by --seed. What was not recorded has no column. A comparison with \
what an episode does not have, such as the success_step of a failure, is false, also one by != or not in.

An expression is made of columns, numbers, 'text', True, False, lists such as [0, 5], < <= == != >= >, in, not in, \
and, or, not, + - * / % and abs(…).

    [dim]act data filter data/push-v3 --where "steps < 90 and source != 'teleop:ann'" --out data/push-v3-quick[/]
    """
    from act_kit.datasets.ops import filter_episodes

    command = ["filter", str(dataset), "--where", where, *(["--seed", str(seed)] if seed else [])]
    _make(filter_episodes(_open([dataset]), where, seed), out, command, overwrite=overwrite)


def split(
    dataset: Dataset,
    out: Out,
    by: Annotated[
        str | None, typer.Option(help="A column, such as source or succeeded: a dataset for each value.")
    ] = None,
    parts: Annotated[
        str | None, typer.Option(help="Relative sizes, such as 80,20: parts that have no start in common.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Split a dataset by who demonstrated (or by another column), or at random into parts that share no start.

    [dim]act data split data/push-v3 --parts 80,20 --out data/push-v3-parts[/]
    """
    from act_kit.datasets.ops import split_by, split_parts

    if by is not None and parts is None:
        derivations, options = split_by(_open([dataset]), by), ["--by", by]
    elif parts is not None and by is None:
        derivations, options = split_parts(_open([dataset]), _shares(parts), seed), ["--parts", parts]
        options += ["--seed", str(seed)] if seed else []
    else:
        raise ConfigError("act data split takes either --by COLUMN, such as --by source, or --parts, such as 80,20.")
    _make(derivations, out, ["split", str(dataset), *options], overwrite=overwrite)


def _shares(parts: str) -> list[float]:
    try:
        return [float(part) for part in parts.split(",")]
    except ValueError as error:
        raise ConfigError(f"--parts takes numbers, such as 80,20, not '{parts}'.") from error


def _open(paths: list[Path]) -> list[EpisodeStore]:
    from act_kit.datasets.store import EpisodeStore, find_datasets

    return [EpisodeStore.open(path) for path in find_datasets(paths)]


def _make(derivations: Derivations, out: Path, command: list[str], *, overwrite: bool) -> None:
    """Write the datasets and say what they hold."""
    from act_kit.datasets.ops import write_derived

    with console.status("writing"):
        stores = write_derived(out, derivations, shlex.join(["act", "data", *command]), overwrite=overwrite)
    for store, derivation in zip(stores, derivations.values(), strict=True):
        of = sum(part.store.num_episodes for part in derivation.parts)
        say(f"{store.num_episodes} of {of} demonstrations, {store.num_steps} steps in {store.path}")

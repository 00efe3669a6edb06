"""``act data merge``, ``split`` and ``filter``: datasets derived from other datasets."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from act_kit.cli.console import console, info
from act_kit.cli.options import Overwrite, command
from act_kit.errors import ConfigError
from act_kit.preflight import require_datasets

if TYPE_CHECKING:
    from act_kit.datasets.ops import Derivations
    from act_kit.datasets.store import EpisodeStore

Dataset = Annotated[Path, typer.Argument(help="A dataset, or a folder of several.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder of the new dataset, or parent folder of several.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the column 'random'.")]


def merge(
    datasets: Annotated[
        list[Path], typer.Argument(help="Datasets, or folders of several.", metavar="DATASET…", show_default=False)
    ],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Merge several datasets into one per task; act train accepts the datasets of several tasks together.

    \b
    act data merge data/push-v3 data/push-v3-teleop --out data/push-v3-all
    """
    from act_kit.datasets.ops import merge as merge_datasets

    _make(merge_datasets(_open(datasets)), out, ["merge", *map(str, datasets)], overwrite=overwrite)


@command
def filter_(dataset: Dataset, *, where: str, out: Out, seed: Seed = 0, overwrite: Overwrite = False) -> None:
    """Keep the episodes for which an expression is true.

    Columns are episode, steps, task, source, succeeded, success_step, final_distance, path_efficiency, idle_fraction, \
clipped_fraction, jerk, gripper_switches, object_x to goal_z (the initial state), first_with_init_state and random: \
"random < 0.5" keeps half of the distinct initial states, sampled with --seed. Data that were not recorded have no \
column. A comparison with a missing value, such as the success_step of a failure, is false, also with != or not in.

    An expression consists of columns, numbers, 'text', True, False, lists such as [0, 5], < <= == != >= >, in, not \
in, and, or, not, + - * / % and abs(…).

    \b
    act data filter data/push-v3 --where "steps < 90 and source != 'teleop:ann'" --out data/push-v3-quick

    Args:
        where: Expression over the columns of an episode.
    """
    from act_kit.datasets.ops import filter_episodes

    words = ["filter", str(dataset), "--where", where, *(["--seed", str(seed)] if seed else [])]
    _make(filter_episodes(_open([dataset]), where, seed), out, words, overwrite=overwrite)


@command
def split(
    dataset: Dataset,
    *,
    out: Out,
    by: str | None = None,
    parts: str | None = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Split a dataset by a column such as the demonstrator, or at random into parts that share no initial state.

    \b
    act data split data/push-v3 --parts 80,20 --out data/push-v3-parts

    Args:
        by: Column, such as source or succeeded: one dataset per value.
        parts: Relative sizes, such as 80,20, of parts that share no initial state.
    """
    from act_kit.datasets.ops import split_by, split_parts

    if by is not None and parts is None:
        derivations, options = split_by(_open([dataset]), by), ["--by", by]
    elif parts is not None and by is None:
        derivations, options = split_parts(_open([dataset]), _shares(parts), seed), ["--parts", parts]
        options += ["--seed", str(seed)] if seed else []
    else:
        raise ConfigError("act data split: expected either --by or --parts. Fix: --by source, or --parts 80,20")
    _make(derivations, out, ["split", str(dataset), *options], overwrite=overwrite)


def _shares(parts: str) -> list[float]:
    try:
        return list(map(float, parts.split(",")))
    except ValueError as error:
        raise ConfigError(f"--parts {parts}: expected numbers, separated by commas. Fix: --parts 80,20") from error


def _open(paths: list[Path]) -> list[EpisodeStore]:
    datasets = require_datasets(paths)
    from act_kit.datasets.store import EpisodeStore

    return [EpisodeStore.open(path) for path in datasets]


def _make(derivations: Derivations, out: Path, words: list[str], *, overwrite: bool) -> None:
    """Write the datasets and print the content of each."""
    from act_kit.datasets.ops import write_derived

    with console.status("writing"):
        stores = write_derived(out, derivations, shlex.join(["act", "data", *words]), overwrite=overwrite)
    for store, derivation in zip(stores, derivations.values(), strict=True):
        num_available = sum(part.store.num_episodes for part in derivation.parts)
        info(f"{store.num_episodes} of {num_available} demonstrations, {store.num_steps} steps in {store.path}")

"""``act collect``: demonstrations from randomized initial states, written to a dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from act_kit.api.collect import check_collection, collect_datasets
from act_kit.cli import options
from act_kit.cli.console import info, shown_progress
from act_kit.config.collection import CollectConfig
from act_kit.errors import ConfigError
from act_kit.files import quoted
from act_kit.overrides import compose
from act_kit.parallel import ExecutorConfig

if TYPE_CHECKING:
    from act_kit.datasets.store import EpisodeStore

_SOURCES = {"policy": "dagger.run", "replay": "replay.dataset"}
"""Options that ``--source`` sets, by demonstrator."""


@options.with_flags(CollectConfig)
def collect(
    *,
    flags: options.Flags,
    overrides: options.Overrides = None,
    randomize: bool | None = None,
    source: str | None = None,
    out: Path | None = None,
    workers: options.Workers = 0,
    executor: options.ExecutorName = "local",
    resume: bool = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    print_config: options.PrintConfig = False,
) -> None:
    """Collect successful demonstrations into a zarr dataset, by default each from a new random initial state.

    \b
    act collect --task pick-place-v3 --randomize --n 200

    Args:
        randomize: New initial state for each episode, or one for all. [default: randomize]
        source: Run for --demonstrator policy, or dataset for --demonstrator replay.
        out: Folder of the dataset; with several tasks, their parent folder. [default: data/TASK]
        resume: Resume a stopped collection, or start a new one; --n may be larger than before.
    """
    from act_kit.sim.tasks import expand_tasks

    flags["num_init_states"] = _num_init_states(randomize, flags["num_init_states"])
    if source is not None:
        if flags["demonstrator"] not in _SOURCES:
            raise ConfigError("--source: expected --demonstrator policy or replay. Fix: --demonstrator policy")
        flags[_SOURCES[flags["demonstrator"]]] = source
    names = expand_tasks(flags["task"]) if flags["task"] else []
    first = compose(CollectConfig, overrides or [], flags | {"task": names[0] if names else None})
    if print_config:
        options.show_config(first)
        return
    datasets: dict[Path, CollectConfig] = {}
    for name in names or [first.task]:
        folder = out if out and len(names) <= 1 else (out or Path("data")) / name
        datasets[folder] = replace(first, task=name)
    ExecutorConfig(executor=executor, num_workers=1)  # refuses an unknown name
    if dry_run:
        check_collection(datasets, resume=resume, overwrite=overwrite)
        options.show_config(first, [f"would collect into {folder}" for folder in datasets])
        return
    with shown_progress() as on_progress:
        for store in collect_datasets(
            datasets, workers=workers, executor=executor, resume=resume, overwrite=overwrite, on_progress=on_progress
        ):
            _print_summary(store)
    if len(datasets) == 1:
        folder_name = quoted(store.path)
        info(f"Next: act report {folder_name} and act train --data {folder_name}")


def _print_summary(store: EpisodeStore) -> None:
    num_attempts = len(store.attempts())
    num_failed = num_attempts - int((store.success_steps >= 0).sum())
    kept = ", and are kept" if store.info.demonstrator == "policy" else ""
    info(
        f"{store.num_episodes} demonstrations, {store.num_steps} steps, {store.size_bytes() / 1e6:.1f} MB in "
        f"{store.path} ({num_failed} of {num_attempts} attempts failed{kept})"
    )


def _num_init_states(randomize: bool | None, num_init_states: int | None) -> int | None:
    """Resolve ``--no-randomize``, which means one initial state; None keeps the value of the configuration."""
    if randomize is None:
        return num_init_states
    if num_init_states not in (None, 0 if randomize else 1):
        flag = "--randomize" if randomize else "--no-randomize"
        raise ConfigError(
            f"{flag} and --num-init-states {num_init_states} contradict each other. Fix: leave one of them out."
        )
    return 0 if randomize else 1

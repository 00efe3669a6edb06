"""A run's folder: ``config.yaml`` (resolved), ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from act_kit.config import TrainConfig
from act_kit.datasets.first_observations import measure_dataset
from act_kit.datasets.frames import find_images
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, DatasetError
from act_kit.files import new_folder, read_json, read_yaml, restore_output, write_text
from act_kit.overrides import build, compose, to_dict
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM


def begin_run(
    run: Path, data: Sequence[Path], overrides: Sequence[str], flags: Mapping[str, Any], *, overwrite: bool
) -> TrainConfig:
    """Compose the configuration, check it and that the data have its pictures, and make the run's folder.

    What it replaces is kept until the run is trained (:func:`~act_kit.files.finish_output`).
    """
    from omegaconf import OmegaConf

    config = compose("train", TrainConfig, overrides, flags)
    if config.policy.cameras:
        find_images([EpisodeStore.open(path) for path in data], config.policy.cameras)
    values = {"data": [str(path.resolve()) for path in data], **to_dict(config)}
    how_to_go_on = f"act train --resume --out {run} goes on with it"
    with new_folder(run, overwrite=overwrite, is_complete=False, how_to_go_on=how_to_go_on) as fresh:
        write_text(fresh / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
    return config


def reopen_run(run: Path) -> tuple[TrainConfig, list[Path]]:
    """Return the configuration of a run that was begun, and the paths of its datasets.

    Raises:
        CheckpointError: There is no such run.
    """
    restore_output(run)
    try:
        values: Any = read_yaml(run / "config.yaml")
        data = [Path(path) for path in values.pop("data")]
        return build(TrainConfig, values), data
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no run at {run} to go on with. Begin one: act train --data DATASET") from error
    except Exception as error:
        raise CheckpointError(f"{run / 'config.yaml'} is damaged: {error}. Begin the run again.") from error


def config_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return the resolved configuration of the run that a checkpoint lies in, without its data; None if in none."""
    if checkpoint.parent.name != "checkpoints" or not (checkpoint.parents[1] / "config.yaml").exists():
        return None
    values: Any = read_yaml(checkpoint.parents[1] / "config.yaml")
    values.pop("data")
    return dict(values)


def steps_taken(run: Path) -> int:
    """Return the step of a run's last checkpoint; 0 if there is none."""
    try:
        return int(read_json(run / "checkpoints" / "last" / "training.json")["step"])
    except FileNotFoundError:
        return 0


def check_data(store: EpisodeStore, *, allow_degenerate: bool) -> str | None:
    """Refuse data that cannot teach the task; return a warning about data that may not, or None.

    Raises:
        DatasetError: It is of no task of Meta-World, or the diversity report says FAIL and that was not allowed.
    """
    if store.num_episodes == 0:
        raise DatasetError(f"{store.path} holds no demonstration yet. Go on collecting: {store.info.command} --resume")
    if not store.is_of_metaworld:
        (state_dim,), (action_dim,) = store.widths["state"], store.widths["action"]
        raise DatasetError(
            f"{store.path} holds states of {state_dim} and actions of {action_dim} numbers of '{store.info.task}'; "
            f"training needs states of {STATE_DIM} and actions of {ACTION_DIM} of one of Meta-World's tasks."
        )
    diversity = measure_dataset(store)
    if diversity.level == "FAIL" and not allow_degenerate:
        raise DatasetError(f"{diversity.verdict}\nTo train on it all the same: --allow-degenerate")
    unfinished = (
        f"{store.path} is unfinished: {store.num_episodes} of {store.info.num_wanted} demonstrations. "
        if store.fingerprint is None
        else ""
    )
    return (unfinished + ("" if diversity.level == "OK" else diversity.verdict)) or None

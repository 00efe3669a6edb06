"""Run folders, and the checks before training.

A run holds ``config.yaml`` (resolved), ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``evaluations.jsonl``.
The latter lists the run's evaluations that are stored in other folders.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from act_kit import options
from act_kit.config.training import TrainConfig
from act_kit.datasets.frames import find_images
from act_kit.datasets.store import EpisodeStore, tasks_of
from act_kit.diversity.first_observations import measure_dataset
from act_kit.errors import CheckpointError, ConfigError, DamagedFileError, DatasetError
from act_kit.files import SEEDS, next_free_path, quoted, read_json, read_text, read_yaml, write_yaml
from act_kit.outputs import new_folder, restore_output
from act_kit.overrides import train_overrides
from act_kit.policies.policy import Policy
from act_kit.policies.task_embedding import load_task_embeddings
from act_kit.policies.vision import FrozenBatchNorm2d, ResNet18, load_backbone
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM
from act_kit.training.schedule import num_chunks, with_schedule

_EVALUATIONS = "evaluations.jsonl"

STEPS_FOLLOW_DATA = "steps_follow_data"
"""Key of ``config.yaml`` that is true if ``trainer.steps`` was chosen for the data: a comparison of runs on data of
different sizes must not take the number of steps for another difference."""


def create_run(run: Path, data: Sequence[Path], config: TrainConfig, *, overwrite: bool) -> None:
    """Check a configuration against the data and the files it names, and create the run's folder.

    A folder that it replaces is kept until the run is trained (:func:`~act_kit.outputs.finish_output`).
    """
    stores = [EpisodeStore.open(path) for path in data]
    check_files(config, stores)
    scheduled = with_schedule(config, num_chunks(stores))
    values = {"data": [str(path.resolve()) for path in data], **options.to_dict(scheduled)}
    if not config.trainer.steps:
        values[STEPS_FOLLOW_DATA] = True
    resume_hint = f"act train --resume --out {quoted(run)} resumes it"
    with new_folder(run, overwrite=overwrite, is_complete=False, hint=resume_hint) as fresh:
        write_yaml(fresh / "config.yaml", values)


def check_files(config: TrainConfig, stores: Sequence[EpisodeStore]) -> None:
    """Check the files that training needs: images, weights, task embeddings, the run in ``init_from``.

    Raises:
        DatasetError, ConfigError, CheckpointError: A file is missing, damaged, or does not fit the model.
    """
    if config.policy.cameras:
        find_images(stores, config.policy.cameras)
    tasks = tasks_of(stores)
    if config.policy.task_embeddings:
        load_task_embeddings(Path(config.policy.task_embeddings), tasks)
    if config.policy.backbone_weights:
        load_backbone(ResNet18(FrozenBatchNorm2d), Path(config.policy.backbone_weights))
    if config.init_from:
        load_initial(config, tasks)


def load_initial(config: TrainConfig, tasks: Sequence[str]) -> Policy:
    """Load the policy of ``init_from``, whose weights training begins with.

    Raises:
        CheckpointError: There is no such policy, or its model or its tasks differ.
    """
    policy = Policy.load(config.init_from)
    loaded = options.to_dict(policy.model.config)
    for key, value in options.to_dict(config.policy).items():
        is_file = key in ("backbone_weights", "task_embeddings")  # the checkpoint contains their content
        old = loaded.get(key)
        is_same = bool(old) == bool(value) if is_file else old == value
        if not is_same and key not in config.policy.training_only:
            raise CheckpointError(
                f"init_from={config.init_from} has policy.{key}={old}, here it is {value}. Fix: use the "
                "policy options of that run."
            )
    if len(policy.metadata.tasks) != len(tasks) or (len(tasks) > 1 and tuple(policy.metadata.tasks) != tuple(tasks)):
        raise CheckpointError(
            f"init_from={config.init_from} was trained on {', '.join(policy.metadata.tasks)}, the datasets are of "
            f"{', '.join(tasks)}: a multi-task policy can only be initialized from a policy of the same tasks."
        )
    return policy


def resume_run(
    run: Path, data: Sequence[Path], requested: TrainConfig, given: Sequence[str]
) -> tuple[TrainConfig, list[Path]]:
    """Return the result of :func:`load_run`, after writing more steps or moved datasets to the run's configuration.

    ``given`` are the dotted keys of the options of ``requested`` that must be those of the run.

    Raises:
        ConfigError: An option differs from the one that the run was started with.
        CheckpointError: The datasets differ from those that the run was started with.
    """
    config, folders = load_run(run)
    for key in given:
        old, new = options.get(config, key), options.get(requested, key)
        is_chosen = new == 0 and key in ("trainer.steps", "trainer.validate_every")
        if old != new and not is_chosen and not (key == "trainer.steps" and new > old):
            raise ConfigError(
                f"{run} was started with {key}={old}, not {new}: only trainer.steps may change, and only grow. Fix: "
                "leave it out, or choose another --out."
            )
    values = read_yaml(run / "config.yaml")
    is_longer = "trainer.steps" in given and requested.trainer.steps > config.trainer.steps
    if is_longer:
        taken = steps_taken(run)
        values["extended_at"] = [*values.get("extended_at", []), *([taken] if taken else [])]
        values["trainer"]["steps"] = requested.trainer.steps
        values.pop(STEPS_FOLLOW_DATA, None)
    moved = [path.resolve() for path in data]
    is_moved = bool(data) and moved != folders
    if is_moved:
        _check_moved(run, moved)
        values["data"] = list(map(str, moved))
    if is_longer or is_moved:
        write_yaml(run / "config.yaml", values)
    return load_run(run)


def _check_moved(run: Path, data: Sequence[Path]) -> None:
    """Refuse datasets other than those of the run's last checkpoint; before the first one, accept any."""
    trained_on, commands, found = [], [], []
    try:
        for dataset in read_json(run / "checkpoints" / "last" / "policy.json")["metadata"]["datasets"]:
            trained_on.append(dataset["fingerprint"])
            commands.append(str(dataset["command"]))
    except FileNotFoundError:
        return
    except (DamagedFileError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run}: its last checkpoint is damaged: {error!r}. Fix: act train") from error
    for path in data:
        store = EpisodeStore.open(path)
        found.append(store.content_fingerprint)
    if trained_on != found:
        raise CheckpointError(
            f"{run} was trained on other data than {', '.join(map(str, data))}: the fingerprints differ. It was "
            f"trained on: {'; '.join(commands)}"
        )


def load_run(run: Path) -> tuple[TrainConfig, list[Path]]:
    """Return the configuration of a run and the paths of its datasets.

    Raises:
        CheckpointError: There is no such run, or its configuration is damaged or of another version.
    """
    restore_output(run)
    try:
        values = read_yaml(run / "config.yaml")
        data, extended_at = values.pop("data"), values.pop("extended_at", [])
        if type(values.pop(STEPS_FOLLOW_DATA, True)) is not bool:
            raise ValueError(f"{STEPS_FOLLOW_DATA}: expected true or false")
        if not isinstance(data, list) or not data or "\0" in "".join(data):
            raise ValueError("data: expected paths")
        if not isinstance(extended_at, list) or not {int}.issuperset(map(type, extended_at)):
            raise ValueError("extended_at: expected steps")
        return options.build(TrainConfig, values), list(map(Path, data))
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no run at {run} to resume. Fix: act train --data DATASET") from error
    except Exception as error:
        raise CheckpointError(
            f"{run / 'config.yaml'} is damaged, or of another version of act_kit: {error}. Fix: start the run again."
        ) from error


def config_of(checkpoint: Path) -> dict[str, Any] | None:
    """Return the resolved configuration of a checkpoint's run, without its data; None outside a run."""
    if checkpoint.parent.name != "checkpoints" or not (checkpoint.parents[1] / "config.yaml").exists():
        return None
    load_run(checkpoint.parents[1])  # raises if it is damaged
    values: Any = read_yaml(checkpoint.parents[1] / "config.yaml")
    values.pop("data")
    return dict(values)


def steps_taken(run: Path) -> int:
    """Return the step of a run's last checkpoint; 0 without a checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    try:
        step = read_json(run / "checkpoints" / "last" / "training.json")["step"]
        if type(step) is not int or step < 0:
            raise ValueError(f"step is {step!r}")
        return step
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run}: its last checkpoint is damaged: {error!r}. Fix: act train") from error


def record_evaluation(checkpoint: Path, folder: Path) -> None:
    """Record the folder of a checkpoint's evaluation in its run; do nothing if the run is not writable.

    An evaluation inside the run's folder is found without a record.
    """
    run = checkpoint.parents[1]
    if not (run / "config.yaml").exists() or run.resolve() in folder.resolve().parents:
        return
    try:
        descriptor = os.open(run / _EVALUATIONS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        with os.fdopen(descriptor, "wb") as file:  # a single write, because two evaluations may end at once
            file.write(json.dumps(str(folder.resolve())).encode() + b"\n")
    except OSError:
        return


def recorded_evaluations(run: Path) -> list[Path]:
    """Return the recorded evaluation folders of a run; some may no longer exist."""
    path = run / _EVALUATIONS
    folders: list[Path] = []
    for line in read_text(path).splitlines() if path.exists() else []:
        try:
            folder = Path(str(json.loads(line)))
            with suppress(FileNotFoundError):
                os.stat(folder)
        except (OSError, ValueError, RecursionError):  # truncated by a kill, or not a path
            continue
        folders.append(folder)
    return list(dict.fromkeys(folders))


def train_command(config: TrainConfig, data: Sequence[Path], run: Path, changes: Mapping[str, Any]) -> str:
    """Return the command that repeats the training of ``run`` with ``changes``, into a new folder next to it."""
    words = ["act", "train"]
    for path in data:
        words += ["--data", str(path)]
    while (run.parent / SEEDS).exists():  # a folder next to the seeds would count as one of them
        run = run.parent.with_name(f"{run.parent.name}-{run.name}")
    return shlex.join([*words, "--out", str(next_free_path(run)), *train_overrides(config, changes)])


def check_data(store: EpisodeStore, *, allow_low_diversity: bool) -> str | None:
    """Refuse a dataset that cannot be trained on; return a warning about one that may be insufficient, or None.

    Raises:
        DatasetError: It is empty or not of a Meta-World task, or its diversity level is FAIL and that is not allowed.
    """
    if store.num_episodes == 0:
        raise DatasetError(
            f"{store.path} has no demonstrations yet. Fix: {store.info.command} --out {quoted(store.path)} --resume"
        )
    if not store.is_metaworld:
        (state_dim,), (action_dim,) = store.widths["state"], store.widths["action"]
        raise DatasetError(
            f"{store.path} holds states of {state_dim} and actions of {action_dim} numbers of '{store.info.task}'; "
            f"training needs states of {STATE_DIM} and actions of {ACTION_DIM} of one of Meta-World's tasks."
        )
    diversity = measure_dataset(store)
    if diversity.level == "FAIL" and not allow_low_diversity:
        raise DatasetError(f"{diversity.verdict}\nTo train on it anyway: --allow-low-diversity")
    warning = "" if diversity.level == "OK" else diversity.verdict
    if store.fingerprint is None:
        progress = f"{store.num_episodes} of {store.info.num_wanted} demonstrations"
        warning = f"{store.path} is unfinished: {progress}. {warning}"
    return warning or None

"""Faults of demonstrations: edits of a dataset that `act report`, `act train` and `act doctor` must name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr

from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset

ACTIONS = ("action", "executed_action")


def write_array(store: EpisodeStore, name: str, values: np.ndarray) -> None:
    """Overwrite an array of a dataset."""
    array = store.group[name]
    assert isinstance(array, zarr.Array)
    array[:] = values


def change_steps(
    store: EpisodeStore, names: Sequence[str], change: Callable[[np.ndarray], np.ndarray], episodes: slice = slice(None)
) -> None:
    """Change the steps of fields, episode by episode."""
    for name in names:
        parts = store.steps_by_episode(name)
        parts[episodes] = [change(part.copy()) for part in parts[episodes]]
        write_array(store, f"data/{name}", np.concatenate(parts))


def scale_columns(columns: slice, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that multiplies columns without clipping."""

    def change(values: np.ndarray) -> np.ndarray:
        values[:, columns] *= factor
        return values

    return change


def swap_x_and_y(values: np.ndarray) -> np.ndarray:
    return values[:, [1, 0, 2, 3]]


def roll_last_fifth(values: np.ndarray) -> np.ndarray:
    first = len(values) * 4 // 5
    values[first:] = np.roll(values[first:], 1, axis=0)
    return values


def round_goal(values: np.ndarray) -> np.ndarray:
    values[:, 36:] = values[:, 36:].round(2)
    return values


def noisy(values: np.ndarray) -> np.ndarray:
    noise = 0.15 * np.random.default_rng(len(values)).standard_normal(values.shape)
    return np.clip(values + noise, -1, 1).astype(values.dtype)


def copy_actions(store: EpisodeStore) -> None:
    """Replace the actions of episode 1 by those of episode 3."""
    for name in ACTIONS:
        parts = store.steps_by_episode(name)
        parts[1] = np.resize(parts[3], parts[1].shape)
        write_array(store, f"data/{name}", np.concatenate(parts))


def reverse_init_states(store: EpisodeStore) -> None:
    write_array(store, "meta/rand_vec", store.rand_vecs[::-1])


def shift_init_states(store: EpisodeStore) -> None:
    """Shift the initial states of the last fifth of the episodes by one."""
    init_states = store.rand_vecs
    first = len(init_states) * 4 // 5
    init_states[first:] = np.roll(init_states[first:], 1, axis=0)
    write_array(store, "meta/rand_vec", init_states)


def truncate(store: EpisodeStore) -> None:
    """Truncate every episode halfway to its success, and mark its last step as a success."""
    recordings = []
    for recording, success_step in zip(store.iter_episodes(), store.success_steps, strict=True):
        steps: dict[str, Any] = {}
        for name, values in recording.steps.items():
            steps[name] = values[: max(success_step // 2, 2)].copy()
        steps["success"][-1] = True
        recordings.append(replace(recording, **steps))
    attempts = store.attempts()
    shutil.rmtree(store.path)
    write_dataset(store.path, store.info, recordings, attempts=attempts)


def relabel(store: EpisodeStore) -> None:
    """Name another task whose initial states have as many dimensions."""
    store.group.attrs["task"] = "push-v3" if store.info.task != "push-v3" else "pick-place-v3"


def change_one_success(store: EpisodeStore) -> None:
    success = store.steps("success")
    success[5] = True
    write_array(store, "data/success", success)


@dataclass(frozen=True)
class DataFault:
    """An edit of a dataset, and the name under which the doctor must rank it first."""

    change: Callable[[EpisodeStore], None]
    found_as: str


def _steps(
    names: Sequence[str], change: Callable[[np.ndarray], np.ndarray], found_as: str, episodes: slice = slice(None)
) -> DataFault:
    return DataFault(lambda store: change_steps(store, names, change, episodes), found_as)


DATA_FAULTS: dict[str, DataFault] = {
    "actions halved": _steps(ACTIONS, scale_columns(slice(4), 0.5), "actions scaled"),
    "labels halved": _steps(["action"], scale_columns(slice(4), 0.5), "actions scaled"),
    "one episode's actions halved": _steps(ACTIONS, scale_columns(slice(4), 0.5), "actions scaled", slice(6, 7)),
    "executed actions halved": _steps(["executed_action"], scale_columns(slice(4), 0.5), "executed actions changed"),
    "x reversed": _steps(ACTIONS, scale_columns(slice(0, 1), -1), "actions with a wrong sign"),
    "x and y swapped": _steps(ACTIONS, swap_x_and_y, "action axes swapped"),
    "z zero": _steps(ACTIONS, scale_columns(slice(2, 3), 0), "action axis is constant"),
    "noisy labels": _steps(["action"], noisy, "labels are noisy"),
    "labels one step late": _steps(["action"], lambda a: np.roll(a, 1, axis=0), "actions off by some steps"),
    "actions two steps early": _steps(ACTIONS, lambda a: np.roll(a, -2, axis=0), "actions off by some steps"),
    "last fifth of the actions late": _steps(ACTIONS, roll_last_fifth, "actions off by some steps"),
    "another episode's actions": DataFault(copy_actions, "actions of another episode"),
    "truncated": DataFault(truncate, "episodes truncated"),
    "success marked early": DataFault(change_one_success, "success marked falsely"),
    "last fifth of the states late": _steps(["state"], roll_last_fifth, "states off by some steps"),
    "goal rounded to 1 cm": _steps(["state"], round_goal, "states rounded"),
    "hand in millimeters": _steps(["state"], scale_columns(slice(3), 1000), "states in another unit"),
    "initial states reversed": DataFault(reverse_init_states, "initial states changed"),
    "last fifth of the initial states shifted": DataFault(shift_init_states, "initial states changed"),
    "another task's name": DataFault(relabel, "episodes of another task"),
}
"""Edits of all episodes, unless the name states otherwise."""

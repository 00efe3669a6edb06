"""Sets of initial states for evaluations, saved with a hash so that evaluations on the same set can be recognized."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from act_kit.arrays import evenly_spaced
from act_kit.config.evaluation import INIT_STATES, EvalConfig
from act_kit.errors import ConfigError, DatasetError, InitialStateError, did_you_mean
from act_kit.eval.distance_to_demos import distances_to_nearest_demo, near_copies
from act_kit.files import read_json, write_json
from act_kit.policies.metadata import PolicyMetadata
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, distinct, stack
from act_kit.sim.tasks import get_task

FORMAT = "act_kit.init_state_set"
VERSION = 1
Kind = Literal["test", "train", "grid", "ood", "mt1", "mt50", "lerobot", "file"]
_SAME_DRAW_M = 1e-9
"""Tolerance for the same draw; NumPy versions may round differently, by far less than this."""


@dataclass(frozen=True, kw_only=True)
class InitialStateSet:
    """The initial states of an evaluation of one task.

    Attributes:
        task: Meta-World task.
        kind: ``test`` (new draws from the initial-state distribution), ``train`` (the demonstrated ones), ``grid`` (a
            lattice), ``ood`` (outside the box of the distribution), ``mt1`` or ``mt50`` (Meta-World's own goals),
            ``lerobot`` (those of lerobot-eval) or ``file`` (provided by the user).
        seed: Seed of the draw.
        init_states: Initial states in the order of the episodes.
    """

    task: str
    kind: Kind
    seed: int
    init_states: tuple[InitialState, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the task and of the exact initial states."""
        return hashlib.sha256(self.task.encode() + stack(self.init_states).tobytes()).hexdigest()

    @property
    def num_distinct(self) -> int:
        """Number of distinct initial states."""
        return len(distinct(stack(self.init_states)))

    @property
    def follows_distribution(self) -> bool:
        """True if these are the draws that follow from the kind, the seed and their number, in that order."""
        if self.kind in ("train", "file"):
            return False
        drawn = make_init_state_set(self.task, self.kind, len(self.init_states), self.seed, [])
        return bool(np.abs(stack(drawn.init_states) - stack(self.init_states)).max() <= _SAME_DRAW_M)

    def save(self, path: Path) -> None:
        """Write the set as JSON; floats stay bit-exact."""
        write_json(
            path,
            {
                "format": FORMAT,
                "version": VERSION,
                "task": self.task,
                "kind": self.kind,
                "seed": self.seed,
                "hash": self.hash,
                "init_states": stack(self.init_states).tolist(),
            },
        )

    @classmethod
    def load(cls, path: Path) -> InitialStateSet:
        """Read a set and check it against its hash.

        The kind in the file is verified: initial states that are not the draws of that kind become kind ``file``.

        Raises:
            DatasetError: The file is missing, is not an initial-state set, or was changed.
        """
        try:
            values: dict[str, Any] = read_json(path)
            if (values["format"], values["version"]) != (FORMAT, VERSION):
                raise ValueError(f"{FORMAT} version {VERSION} was expected")
            task, kind, init_states = values["task"], values["kind"], []
            for rand_vec in values["init_states"]:
                init_states.append(InitialState.of(task, np.array(rand_vec, dtype=np.float64)))
                get_task(task).check(init_states[-1].array)
            loaded = cls(task=task, kind=kind, seed=int(values["seed"]), init_states=tuple(init_states))
            if not init_states or loaded.hash != values["hash"]:
                raise DatasetError(
                    f"{path} was changed after it was written: its initial states do not match its hash."
                )
            is_declared = kind == "train" or (kind in get_args(Kind) and loaded.follows_distribution)
        except FileNotFoundError as error:
            hint = did_you_mean(str(path), INIT_STATES)
            raise DatasetError(f"'{path}' is not a file; choose from: {', '.join(INIT_STATES)}.{hint}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise DatasetError(
                f"{path} is not an evaluation set: {error!r}. Fix: use an init_states.json that act eval wrote."
            ) from error
        return loaded if is_declared else replace(loaded, kind="file")


def make_init_state_set(
    task: str, kind: Kind, num: int, seed: int, demonstrated: Sequence[Sequence[float]]
) -> InitialStateSet:
    """Draw an evaluation set; ``train`` takes ``num`` evenly spaced demonstrated initial states.

    Raises:
        ConfigError: The kind is unknown.
        InitialStateError: The kind is ``train``, and the demonstrated initial states were not recorded.
    """
    if kind not in INIT_STATES:
        raise ConfigError(f"kind='{kind}': choose from: {', '.join(INIT_STATES)}.{did_you_mean(kind, INIT_STATES)}")
    if kind == "train":
        if not demonstrated:
            raise InitialStateError(
                f"The initial states of the demonstrations of {task} were not recorded. Fix: --init-states test"
            )
        chosen = np.array(demonstrated)[evenly_spaced(len(demonstrated), num)]
        init_states = [InitialState.of(task, rand_vec) for rand_vec in chosen]
    else:
        distribution = InitialStateDistribution(task, "uniform" if kind == "test" else kind)
        init_states = distribution.sample(num, seed=seed, stream="evaluate")
    return InitialStateSet(task=task, kind=kind, seed=seed, init_states=tuple(init_states))


def init_state_sets_from(choice: str, metadata: PolicyMetadata, config: EvalConfig) -> list[InitialStateSet]:
    """Return the sets that ``--init-states`` selects: one per task of the policy for a kind, or one saved set.

    A saved set, given by its path, is of one task; only that task is evaluated.
    """
    if choice in INIT_STATES:
        kind = cast(Kind, choice)
        sets: list[InitialStateSet] = []
        for task in metadata.tasks:
            known = metadata.init_states_of(task)
            sets.append(make_init_state_set(task, kind, config.episodes, config.seed, known))
        return sets
    init_state_set = InitialStateSet.load(Path(choice))
    known = metadata.init_states_of(init_state_set.task)
    unknown = set(map(tuple, stack(init_state_set.init_states).tolist())).difference(map(tuple, known))
    if init_state_set.kind == "train" and unknown:
        init_state_set = replace(init_state_set, kind="file")
    return [init_state_set]


def check_disjoint(init_state_set: InitialStateSet, demonstrated: Sequence[Sequence[float]]) -> None:
    """Refuse initial states that are demonstrated ones or near copies of them: success from them may be memory.

    Raises:
        InitialStateError: Some initial states lie nearer to demonstrated ones than chance allows.
    """
    if init_state_set.kind == "train" or not demonstrated:
        return
    seen = np.array(demonstrated)
    copies = np.flatnonzero(near_copies(init_state_set.task, stack(init_state_set.init_states), seen))
    if len(copies):
        num = len(init_state_set.init_states)
        first = init_state_set.init_states[copies[0]]
        (distance,) = distances_to_nearest_demo(init_state_set.task, [first], seen)
        raise InitialStateError(
            f"{len(copies)} of the {num} evaluation initial states of {init_state_set.task} were demonstrated in "
            f"training, exactly or nearly (the first is number {copies[0]}, {distance:.1g} box widths from a "
            "demonstrated one): success from them may be memory. Fix: draw others with another --seed, or evaluate the "
            "demonstrated ones on purpose with --init-states train."
        )

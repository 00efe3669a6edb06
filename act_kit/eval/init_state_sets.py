"""Evaluation sets: starts in a file with a hash, so that two evaluations can know that they measured the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from act_kit.config import EvalConfig
from act_kit.errors import ConfigError, DatasetError, InitialStateError, did_you_mean
from act_kit.eval.distance_to_demos import distances_to_nearest_demo, near_copies
from act_kit.files import read_json, write_json
from act_kit.policies.policy import PolicyMetadata
from act_kit.sim.initial_states import InitialState, InitialStateDistribution, distinct, stack
from act_kit.sim.tasks import get_task

FORMAT = "act_kit.evalset"
VERSION = 1
Kind = Literal["test", "train", "grid", "ood", "file"]
CHOICES = ("test", "train", "grid", "ood")
"""The kinds that can be asked for by name."""

_SAME_DRAW_M = 1e-9
"""Another version of NumPy may round a draw otherwise, by far less than this."""


@dataclass(frozen=True, kw_only=True)
class InitialStateSet:
    """The starts of an evaluation.

    Attributes:
        task: Meta-World task.
        kind: ``fresh`` (drawn anew from the reset law), ``dataset`` (the demonstrated ones), ``grid`` (a lattice),
            ``ood`` (outside the box that the reset law draws from) or ``file`` (somebody's own).
        seed: Of the draw.
        starts: In the order they are run.
    """

    task: str
    kind: Kind
    seed: int
    init_states: tuple[InitialState, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the task and its starts, to the bit."""
        return hashlib.sha256(self.task.encode() + stack(self.init_states).tobytes()).hexdigest()

    @property
    def num_distinct(self) -> int:
        return len(distinct(stack(self.init_states)))

    @property
    def follows_distribution(self) -> bool:
        """Whether these are the draws that its kind, seed and number decide, in that order."""
        if self.kind in ("train", "file"):
            return False
        drawn = make_init_state_set(self.task, self.kind, len(self.init_states), self.seed, [])
        return bool(np.abs(stack(drawn.init_states) - stack(self.init_states)).max() <= _SAME_DRAW_M)

    def save(self, path: Path) -> None:
        """Write the set as JSON; floats keep every bit."""
        write_json(
            path,
            {
                "format": FORMAT,
                "version": VERSION,
                "task": self.task,
                "kind": self.kind,
                "seed": self.seed,
                "hash": self.hash,
                "init_states": [init_state.rand_vec for init_state in self.init_states],
            },
        )

    @classmethod
    def load(cls, path: Path) -> InitialStateSet:
        """Read a set and check it against its hash.

        Its kind is what it is, not what the file says: initial states that are not the draws of the law that they name
        are of kind ``file``.

        Raises:
            DatasetError: It is missing, something else, or was changed.
        """
        try:
            values: dict[str, Any] = read_json(path)
            if values["format"] != FORMAT or values["version"] != VERSION:
                raise DatasetError(f"{path} is not an evaluation set of this act_kit ({FORMAT} version {VERSION}).")
            init_states = tuple(
                InitialState.of(values["task"], np.array(init_state, dtype=np.float64))
                for init_state in values["init_states"]
            )
            init_state_set = cls(
                task=values["task"], kind=values["kind"], seed=int(values["seed"]), init_states=init_states
            )
            for init_state in init_states:
                get_task(init_state_set.task).check(init_state.array)
            is_known = init_state_set.kind in get_args(Kind)
            is_as_said = (
                init_state_set.kind == "train" or not init_states or (is_known and init_state_set.follows_distribution)
            )
        except FileNotFoundError as error:
            raise DatasetError(
                f"'{path}' is neither a file nor one of {', '.join(CHOICES)}.{did_you_mean(str(path), CHOICES)}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise DatasetError(
                f"{path} is not an evaluation set: {error!r}. Use a init_states.json that eval wrote."
            ) from error
        if init_state_set.hash != values["hash"] or not init_states:
            raise DatasetError(f"{path} was changed since it was written: its starts do not match its hash.")
        return init_state_set if is_as_said else replace(init_state_set, kind="file")


def make_init_state_set(
    task: str, kind: Kind, num: int, seed: int, demonstrated: Sequence[Sequence[float]]
) -> InitialStateSet:
    """Draw an evaluation set: ``dataset`` takes ``num`` demonstrated starts, evenly over all of them.

    Raises:
        ConfigError: There is no such kind.
        StartError: The demonstrated starts are asked for, and nobody recorded them.
    """
    if kind not in CHOICES:
        raise ConfigError(f"kind='{kind}': there are {', '.join(CHOICES)}.{did_you_mean(kind, CHOICES)}")
    if kind == "train":
        if not demonstrated:
            raise InitialStateError(f"The starts of the demonstrations of {task} were not recorded: --init-states test")
        chosen = np.unique(np.linspace(0, len(demonstrated) - 1, num).round().astype(int))
        init_states = [InitialState.of(task, np.array(demonstrated[i])) for i in chosen]
    else:
        distribution = InitialStateDistribution(task, "uniform" if kind == "test" else kind)
        init_states = distribution.sample(num, seed=seed, stream="evaluate")
    return InitialStateSet(task=task, kind=kind, seed=seed, init_states=tuple(init_states))


def init_state_sets_from(choice: str, contract: PolicyMetadata, config: EvalConfig) -> list[InitialStateSet]:
    """Make the sets that ``--init-states`` asks for by their kind, one of each of a policy's tasks.

    It may also be the path of a saved set, which is of one task: only that is evaluated then.
    """
    if choice in CHOICES:
        kind = cast(Kind, choice)
        return [
            make_init_state_set(task, kind, config.episodes, config.seed, contract.init_states_of(task))
            for task in contract.tasks
        ]
    init_state_set = InitialStateSet.load(Path(choice))
    known = contract.init_states_of(init_state_set.task)
    if init_state_set.kind == "train" and not all(
        list(init_state.rand_vec) in known for init_state in init_state_set.init_states
    ):
        init_state_set = replace(init_state_set, kind="file")
    return [init_state_set]


def check_disjoint(init_state_set: InitialStateSet, demonstrated: Sequence[Sequence[float]]) -> None:
    """Raise :class:`InitialStateError` if initial states are demonstrated ones, or moved by less than chance would move them.

    Success from them may be memory.
    """
    if init_state_set.kind == "train" or not demonstrated:
        return
    seen = np.array(demonstrated)
    again = np.flatnonzero(near_copies(init_state_set.task, stack(init_state_set.init_states), seen))
    if len(again):
        (apart,) = distances_to_nearest_demo(init_state_set.task, [init_state_set.init_states[again[0]]], seen)
        raise InitialStateError(
            f"{len(again)} of the {len(init_state_set.init_states)} evaluation starts of {init_state_set.task} were demonstrated in "
            f"training, exactly or nearly (the first is number {again[0]}, {apart:.1g} box widths from one): success "
            "from them may be memory. Draw others with another --seed, or say that you mean it with --init-states dataset."
        )

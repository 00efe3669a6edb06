"""Evaluation sets: starts in a file with a hash, so that two evaluations can know that they measured the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from act_kit.config import EvalConfig
from act_kit.errors import DatasetError, StartError, did_you_mean
from act_kit.files import read_json, write_json
from act_kit.policy.policy import Contract
from act_kit.sim.starts import Start, StartLaw, distinct, shared, stack
from act_kit.sim.tasks import get_task

FORMAT = "act_kit.evalset"
VERSION = 1
Kind = Literal["fresh", "dataset", "grid", "ood"]


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The starts of an evaluation.

    Attributes:
        task: Meta-World task.
        kind: ``fresh`` (drawn anew from the reset law), ``dataset`` (the demonstrated ones), ``grid`` (a lattice) or
            ``ood`` (outside the box that the reset law draws from).
        seed: Of the draw.
        starts: In the order they are run.
    """

    task: str
    kind: Kind
    seed: int
    starts: tuple[Start, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the task and its starts, to the bit."""
        return hashlib.sha256(self.task.encode() + stack(self.starts).tobytes()).hexdigest()

    @property
    def num_distinct(self) -> int:
        return len(distinct(stack(self.starts)))

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
                "starts": [start.rand_vec for start in self.starts],
            },
        )

    @classmethod
    def load(cls, path: Path) -> EvalSet:
        """Read a set and check it against its hash.

        Raises:
            DatasetError: It is missing, something else, or was changed.
        """
        try:
            values: dict[str, Any] = read_json(path)
            if values["format"] != FORMAT or values["version"] != VERSION:
                raise DatasetError(f"{path} is not an evaluation set of this act_kit ({FORMAT} version {VERSION}).")
            starts = tuple(Start.of(values["task"], np.array(start, dtype=np.float64)) for start in values["starts"])
            evalset = cls(task=values["task"], kind=values["kind"], seed=int(values["seed"]), starts=starts)
            for start in starts:
                get_task(evalset.task).check(start.array)
        except FileNotFoundError as error:
            known = get_args(Kind)
            raise DatasetError(
                f"'{path}' is neither a file nor one of {', '.join(known)}.{did_you_mean(str(path), known)}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path} is not an evaluation set: {error!r}. Use a starts.json that eval wrote."
            ) from error
        if evalset.hash != values["hash"] or not starts:
            raise DatasetError(f"{path} was changed since it was written: its starts do not match its hash.")
        return evalset


def make_evalset(task: str, kind: Kind, num: int, seed: int, demonstrated: Sequence[Sequence[float]]) -> EvalSet:
    """Draw an evaluation set: ``dataset`` takes ``num`` demonstrated starts, evenly over all of them.

    Raises:
        StartError: The demonstrated starts are asked for, and nobody recorded them.
    """
    if kind == "dataset":
        if not demonstrated:
            raise StartError(f"The starts of the demonstrations of {task} were not recorded: --starts fresh")
        chosen = np.unique(np.linspace(0, len(demonstrated) - 1, num).round().astype(int))
        starts = [Start.of(task, np.array(demonstrated[i])) for i in chosen]
    else:
        law = StartLaw(task, "uniform" if kind == "fresh" else kind)
        starts = law.sample(num, seed=seed, stream="evaluate")
    return EvalSet(task=task, kind=kind, seed=seed, starts=tuple(starts))


def evalsets_from(choice: str, contract: Contract, config: EvalConfig) -> list[EvalSet]:
    """Make the sets that ``--starts`` asks for by their kind, one of each of a policy's tasks.

    It may also be the path of a saved set, which is of one task: only that is evaluated then.
    """
    if choice in get_args(Kind):
        kind = cast(Kind, choice)
        return [
            make_evalset(task, kind, config.episodes, config.seed, contract.starts_of(task)) for task in contract.tasks
        ]
    return [EvalSet.load(Path(choice))]


def check_disjoint(evalset: EvalSet, demonstrated: Sequence[Sequence[float]]) -> None:
    """Raise :class:`StartError` if a start is among the task's demonstrated ones: success from it may be memory."""
    if evalset.kind == "dataset":
        return
    again = np.flatnonzero(shared(stack(evalset.starts), np.array(demonstrated)))
    if len(again):
        raise StartError(
            f"{len(again)} of the {len(evalset.starts)} evaluation starts of {evalset.task} were demonstrated in "
            f"training (the first is number {again[0]}): success from them may be memory. Draw others with another "
            "--seed, or say that you mean it with --starts dataset."
        )

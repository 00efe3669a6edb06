"""Evaluation sets: starts in a file with a hash, so that two evaluations can know that they measured the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np

from act_kit.config import EvalConfig
from act_kit.errors import ConfigError, DatasetError, StartError, did_you_mean
from act_kit.eval.nearness import near_copies, nearest_demonstrations
from act_kit.files import read_json, write_json
from act_kit.policy.policy import Contract
from act_kit.sim.starts import Start, StartLaw, distinct, stack
from act_kit.sim.tasks import get_task

FORMAT = "act_kit.evalset"
VERSION = 1
Kind = Literal["fresh", "dataset", "grid", "ood", "file"]
CHOICES = ("fresh", "dataset", "grid", "ood")
"""The kinds that can be asked for by name."""

_SAME_DRAW_M = 1e-9
"""Another version of NumPy may round a draw otherwise, by far less than this."""


@dataclass(frozen=True, kw_only=True)
class EvalSet:
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
    starts: tuple[Start, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the task and its starts, to the bit."""
        return hashlib.sha256(self.task.encode() + stack(self.starts).tobytes()).hexdigest()

    @property
    def num_distinct(self) -> int:
        return len(distinct(stack(self.starts)))

    @property
    def follows_law(self) -> bool:
        """Whether these are the draws that its kind, seed and number decide, in that order."""
        if self.kind in ("dataset", "file"):
            return False
        drawn = make_evalset(self.task, self.kind, len(self.starts), self.seed, [])
        return bool(np.abs(stack(drawn.starts) - stack(self.starts)).max() <= _SAME_DRAW_M)

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

        Its kind is what it is, not what the file says: initial states that are not the draws of the law that they name
        are of kind ``file``.

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
            is_known = evalset.kind in get_args(Kind)
            is_as_said = evalset.kind == "dataset" or not starts or (is_known and evalset.follows_law)
        except FileNotFoundError as error:
            raise DatasetError(
                f"'{path}' is neither a file nor one of {', '.join(CHOICES)}.{did_you_mean(str(path), CHOICES)}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise DatasetError(
                f"{path} is not an evaluation set: {error!r}. Use a starts.json that eval wrote."
            ) from error
        if evalset.hash != values["hash"] or not starts:
            raise DatasetError(f"{path} was changed since it was written: its starts do not match its hash.")
        return evalset if is_as_said else replace(evalset, kind="file")


def make_evalset(task: str, kind: Kind, num: int, seed: int, demonstrated: Sequence[Sequence[float]]) -> EvalSet:
    """Draw an evaluation set: ``dataset`` takes ``num`` demonstrated starts, evenly over all of them.

    Raises:
        ConfigError: There is no such kind.
        StartError: The demonstrated starts are asked for, and nobody recorded them.
    """
    if kind not in CHOICES:
        raise ConfigError(f"kind='{kind}': there are {', '.join(CHOICES)}.{did_you_mean(kind, CHOICES)}")
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
    if choice in CHOICES:
        kind = cast(Kind, choice)
        return [
            make_evalset(task, kind, config.episodes, config.seed, contract.starts_of(task)) for task in contract.tasks
        ]
    evalset = EvalSet.load(Path(choice))
    known = contract.starts_of(evalset.task)
    if evalset.kind == "dataset" and not all(list(start.rand_vec) in known for start in evalset.starts):
        evalset = replace(evalset, kind="file")
    return [evalset]


def check_disjoint(evalset: EvalSet, demonstrated: Sequence[Sequence[float]]) -> None:
    """Raise :class:`StartError` if initial states are demonstrated ones, or moved by less than chance would move them.

    Success from them may be memory.
    """
    if evalset.kind == "dataset" or not demonstrated:
        return
    seen = np.array(demonstrated)
    again = np.flatnonzero(near_copies(evalset.task, stack(evalset.starts), seen))
    if len(again):
        (apart,) = nearest_demonstrations(evalset.task, [evalset.starts[again[0]]], seen)
        raise StartError(
            f"{len(again)} of the {len(evalset.starts)} evaluation starts of {evalset.task} were demonstrated in "
            f"training, exactly or nearly (the first is number {again[0]}, {apart:.1g} box widths from one): success "
            "from them may be memory. Draw others with another --seed, or say that you mean it with --starts dataset."
        )

"""DAgger (Ross, Gordon and Bagnell 2011): a policy acts, and the scripted expert says what it would have done.

So the data hold the states that the policy gets itself into, with the way out of them. Their algorithm 3.1 mixes policy
and expert by beta_i in iteration i, with beta_1 = 1: the demonstrations that the policy was trained on. Here the
mixture may change from attempt to attempt of one iteration.

By default the expert carries out half of the stretches, in all attempts. Measured against less of it (BENCHMARKS.md):
a policy of chunks learns rows of labels, and such a row is a plan only where the expert carried it out; and a policy
that is stuck fills the data with its 500 steps.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from act_kit.config import CollectConfig
from act_kit.errors import ConfigError
from act_kit.policies.policy import Policy, find_checkpoint
from act_kit.rollouts.episode import POLICY
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState

_MIXTURE = 1
"""Of the random numbers of an attempt; those of its noise have none."""


class DaggerDemonstrator:
    """A policy whose every action the scripted expert corrects.

    It carries out its chunks as it does in use, but without ensembling: before each query of the policy, the expert may
    take over until the next one, with a probability that depends on the attempt.
    """

    _beta: float
    _rng: np.random.Generator

    def __init__(self, config: CollectConfig) -> None:
        folder = find_checkpoint(Path(config.dagger.run)).resolve()
        self._policy = Policy.load(folder).for_task(config.task)
        if self._policy.views:
            raise ConfigError(
                f"{config.dagger.run} looks at pictures ({', '.join(self._policy.views.cameras)}); only a policy on "
                "states can demonstrate: policy.inputs=state"
            )
        run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
        self.source = f"{POLICY}{run.name}"
        self.parent: dict[str, Any] | None = {
            "path": config.dagger.run,
            "made_by": repr(self._policy),
            "fingerprint": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        }
        self._config = config
        self._expert = ScriptedExpert(config.task)
        self._chunk: list[np.ndarray | None] = []

    def begin(self, init_state: InitialState, attempt: int) -> None:
        first, last = self._config.dagger.expert_first, self._config.dagger.expert_last
        self._beta = first + (last - first) * min(1.0, attempt / max(1, self._config.n - 1))
        self._rng = np.random.default_rng([self._config.seed, attempt, _MIXTURE])
        self._chunk.clear()

    def act(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        label = self._expert.act(state)
        if not self._chunk:
            num = self._policy.chunking.n_action_steps
            experts = self._rng.random() < self._beta
            self._chunk += [None] * num if experts else list(self._policy.predict(state[None])[0, :num])
        planned = self._chunk.pop(0)
        return label, label if planned is None else np.clip(planned, -1.0, 1.0)

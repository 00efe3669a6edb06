"""DAgger (Ross, Gordon and Bagnell 2011): a policy acts, and the scripted expert labels the states it visits.

The data then hold the states that the policy's own errors lead to, with the actions that recover from them. Algorithm
3.1 of the paper mixes policy and expert by beta_i in iteration i, with beta_1 = 1: the demonstrations that the policy
was trained on. Here the mixture may change from attempt to attempt within one iteration.

By default the expert executes half of the chunks, in all attempts. A smaller share does worse (BENCHMARKS.md): a
chunked policy learns sequences of labels, and such a sequence is a plan only where the expert executed it; and a policy
that is stuck fills the data with its 500 steps.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from act_kit.config.collection import CollectConfig
from act_kit.errors import ConfigError
from act_kit.policies.first_states import FirstStates
from act_kit.policies.policy import Policy
from act_kit.policies.storage import find_checkpoint
from act_kit.rollouts.agents import ActionChunks, Agent
from act_kit.rollouts.episode import POLICY
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState

_MIXTURE_STREAM = 1
"""Third number of the seed that mixes policy and expert in an attempt; the seed of its noise has two."""


class DaggerAgent(Agent):
    """Agent that executes a policy's actions, labeled by the scripted expert.

    It executes chunks as in evaluation, but without temporal ensembling. Before each query of the policy, the expert
    takes over until the next query with probability beta, which depends on the attempt.
    """

    def __init__(self, config: CollectConfig) -> None:
        folder = find_checkpoint(Path(config.dagger.run)).resolve()
        self._policy = Policy.load(folder).for_task(config.task)
        if self._policy.views:
            raise ConfigError(
                f"{config.dagger.run} takes images ({', '.join(self._policy.views.cameras)}): expected a policy on "
                "states. Fix: train one with policy.inputs=state"
            )
        run = folder.parents[1] if folder.parent.name == "checkpoints" else folder
        self.source = f"{POLICY}{run.name}"
        self.parent = {
            "path": config.dagger.run,
            "made_by": repr(self._policy),
            "fingerprint": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        }
        self._config = config
        self._expert = ScriptedExpert(config.task)
        self._betas: dict[int, float] = {}
        self._rngs: dict[int, np.random.Generator] = {}
        self._chunks: dict[int, list[np.ndarray | None]] = {}
        self._first_states = FirstStates()

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        """Set the probability that the expert acts, which depends on the attempt."""
        first, last = self._config.dagger.expert_first, self._config.dagger.expert_last
        self._betas[row] = first + (last - first) * min(1.0, attempt / max(1, self._config.n - 1))
        self._rngs[row] = np.random.default_rng([self._config.seed, attempt, _MIXTURE_STREAM])
        self._chunks[row] = []
        self._first_states.reset(np.array([row]))

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> ActionChunks:
        """Return one action per environment, of the policy or the expert, with the expert's as label."""
        labels = np.stack([self._expert.act(state) for state in states])
        actions = labels.copy()
        first_states = self._first_states.of(rows, states)
        for i, row in enumerate(rows.tolist()):
            if not self._chunks[row]:
                self._chunks[row] = self._next_chunk(row, states[i], first_states[i])
            planned = self._chunks[row].pop(0)
            if planned is not None:
                actions[i] = np.clip(planned, -1.0, 1.0)
        return ActionChunks(actions=actions[:, None], labels=labels[:, None])

    def _next_chunk(self, row: int, state: np.ndarray, first_state: np.ndarray) -> list[np.ndarray | None]:
        """Return the actions until the next query: the policy's, or None where the expert acts."""
        num = self._policy.chunking.n_action_steps
        if self._rngs[row].random() < self._betas[row]:
            return [None] * num
        return list(self._policy.predict(state[None], first_states=first_state[None])[0, :num])

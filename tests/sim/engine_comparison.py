"""Compare the fast engine with Meta-World's own environment, bit by bit.

For each task: rollouts of the scripted expert and of random actions from several initial states; after every step
qpos, qvel, state, success, distance and reward; the same again in chunks of other lengths; then more episodes in the
same process, and the first ones once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import ACTION_DIM


@dataclass
class Tally:
    """What was compared, and where it differed."""

    num_steps: int = 0
    differences: list[str] = field(default_factory=list)

    def compare(self, what: str, fast: object, reference: object) -> None:
        """Note a difference unless the two are equal to the bit."""
        if not np.array_equal(np.asarray(fast), np.asarray(reference)):
            off = np.abs(np.asarray(fast, dtype=float) - np.asarray(reference, dtype=float)).max()
            self.differences.append(f"{what} (by {off:.3g})")


def random_actions(num: int, seed: int) -> np.ndarray:
    """Return uniform actions, float32 (num, 4)."""
    return np.random.default_rng(seed).uniform(-1, 1, (num, ACTION_DIM)).astype(np.float32)


def compare_rollout(
    tally: Tally, fast: Simulator, reference: Simulator, init_state: InitialState, actions: np.ndarray | int
) -> None:
    """Step both engines from ``init_state`` by ``actions`` (T, 4), or by the expert for that many steps."""
    state = reference.reset(init_state)
    tally.compare("state at reset", fast.reset(init_state), state)
    tally.compare("distance at reset", fast.distance, reference.distance)
    tally.compare("physics at reset", fast.physics(), reference.physics())
    expert = ScriptedExpert(init_state.task) if isinstance(actions, int) else None
    done: list[np.ndarray] = []
    step_batches = []
    for t in range(actions if isinstance(actions, int) else len(actions)):
        action = expert.act(state) if expert else actions[t]  # type: ignore[index]
        done.append(action)
        theirs, ours = (simulator.step_chunk(action[None], rewards=True) for simulator in (reference, fast))
        step_batches.append(theirs)
        for name in ("state", "success", "distance", "reward", "info"):
            tally.compare(f"{name} at step {t}", getattr(ours, name), getattr(theirs, name))
        for name in ("qpos", "qvel"):
            mine, its = getattr(fast.engine.data, name), getattr(reference.engine.data, name)
            tally.compare(f"{name} at step {t}", mine, its)
        state = theirs.state[-1]
    tally.num_steps += len(done)
    fast.reset(init_state)
    cuts = np.sort(np.random.default_rng(len(done)).integers(1, len(done), 8))
    chunks = [fast.step_chunk(chunk) for chunk in np.split(np.array(done), cuts)]
    for name in ("state", "success", "distance"):
        in_chunks = np.concatenate([getattr(chunk, name) for chunk in chunks])
        tally.compare(
            f"{name} in chunks", in_chunks, np.concatenate([getattr(step_batch, name) for step_batch in step_batches])
        )
    tally.compare("physics at the end", fast.physics(), reference.physics())


def compare_task(task: str, *, num_init_states: int, num_steps: int, num_more_episodes: int) -> Tally:
    """Compare a task's engines; see the top of the file."""
    tally = Tally()
    init_states: Sequence[InitialState] = InitialStateDistribution(task).sample(
        num_init_states, seed=7, stream="validate"
    )
    fast, reference = Simulator(task, "fast"), Simulator(task, "reference")
    # Another simulator of the same process, whose model it shares, must not be felt.
    other = Simulator(task, "fast")
    other.reset(InitialStateDistribution(task).sample(1, seed=8, stream="validate")[0])

    def compare_all() -> None:
        for seed, init_state in enumerate(init_states):
            compare_rollout(tally, fast, reference, init_state, num_steps)
            other.step_chunk(random_actions(4, seed))
            compare_rollout(tally, fast, reference, init_state, random_actions(num_steps, seed))

    compare_all()
    if num_more_episodes:
        for seed, init_state in enumerate(
            InitialStateDistribution(task).sample(num_more_episodes, seed=9, stream="validate")
        ):
            fast.reset(init_state)
            fast.step_chunk(random_actions(5, seed))
        init_states = init_states[:1]
        compare_all()
    return tally

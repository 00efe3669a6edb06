"""The fast engine against Meta-World's ``env.step`` and ``env.reset``, and against MuJoCo alone; one core, one process.

OMP_NUM_THREADS=1 python benchmarks/engines.py [TASK …]      about 3 minutes for all 50; prints a Markdown table

Along the scripted expert's episode from one start, the same actions for all: Meta-World's environment, a loop of
nothing but ``mj_step(model, data, 5)`` and ``mj_forward`` with the actions already turned into MuJoCo's inputs, and the
engine asked for chunks of 16 actions and of one. Each is run three times in turn, and the fastest counts.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import mujoco
import numpy as np

from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.fast import FastEngine
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.reference import ReferenceEngine
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS

NUM_STEPS = 96
NUM_RESETS = 12
REPEATS = 3


def seconds(function: Callable[..., object], *arguments: object) -> float:
    """Time one call."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def expert_actions(simulator: Simulator, init_state: InitialState) -> np.ndarray:
    """Return the expert's actions, float32 (NUM_STEPS, 4)."""
    expert = ScriptedExpert(init_state.task)
    state = simulator.reset(init_state)
    actions = []
    for _ in range(NUM_STEPS):
        actions.append(expert.act(state))
        state = simulator.step_chunk(actions[-1][None]).state[-1]
    return np.array(actions)


def step_physics(engine: FastEngine, positions: Sequence[np.ndarray], efforts: Sequence[tuple[float, float]]) -> None:
    """Step MuJoCo alone through the positions of the hand and the efforts of the fingers."""
    model, data = engine.model, engine.data
    mocap, ctrl, step, forward = data.mocap_pos, data.ctrl, mujoco.mj_step, mujoco.mj_forward
    data.mocap_quat[:] = (1, 0, 1, 0)
    for position, effort in zip(positions, efforts, strict=True):
        mocap[0] = position
        ctrl[:] = effort
        step(model, data, 5)
        forward(model, data)


def measure(task: str) -> dict[str, float]:
    """Return microseconds a step, and milliseconds a reset, by what was measured."""
    fast, reference = Simulator(task, "fast"), Simulator(task, "reference")
    assert isinstance(fast.engine, FastEngine)
    assert isinstance(reference.engine, ReferenceEngine)
    env = reference.engine._env
    init_state, *others = InitialStateDistribution(task).sample(1 + NUM_RESETS, seed=3, stream="validate")
    actions = expert_actions(fast, init_state)

    def official_reset(to: InitialState) -> None:
        env._last_rand_vec = to.array
        env.reset()

    def official_steps() -> None:
        for action in actions:
            env.step(action)

    def chunks(size: int) -> None:
        for begin in range(0, NUM_STEPS, size):
            fast.step_chunk(actions[begin : begin + size])

    fast.reset(init_state)
    positions = [fast.engine.data.mocap_pos[0].copy()]
    for action in actions:
        positions.append(np.clip(positions[-1] + action[:3] * env.action_scale, env.mocap_low, env.mocap_high))
    efforts = [(float(action[3]), -float(action[3])) for action in actions]
    physics = partial(step_physics, fast.engine, positions[1:], efforts)
    times: dict[str, list[float]] = {}
    for _ in range(REPEATS):
        official_reset(init_state)
        times.setdefault("official", []).append(seconds(official_steps))
        for name, run in (("physics", physics), ("chunks", partial(chunks, 16)), ("singly", partial(chunks, 1))):
            fast.reset(init_state)
            times.setdefault(name, []).append(seconds(run))
    result = {name: 1e6 * min(spent) / NUM_STEPS for name, spent in times.items()}
    resets = [(seconds(official_reset, other), seconds(fast.reset, other)) for other in others]
    result["official reset"], result["reset"] = 1e3 * np.median(resets, axis=0)
    return result


def main() -> None:
    """Print the table and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    tasks = parser.parse_args().tasks or TASKS
    warnings.simplefilter("ignore")
    print(
        "| task | `env.step`, µs | MuJoCo alone | engine, chunks of 16 | engine, one by one | x `env.step` | "
        "of MuJoCo's rate | one by one | `env.reset`, ms | engine | x |\n" + "| --- " * 11 + "|"
    )
    ratios = []
    for task in tasks:
        t = measure(task)
        ratio = (
            t["official"] / t["chunks"],
            t["physics"] / t["chunks"],
            t["physics"] / t["singly"],
            t["official reset"] / t["reset"],
            t["official"] / t["physics"],
        )
        ratios.append(ratio)
        print(
            f"| {task} | {t['official']:.0f} | {t['physics']:.0f} | {t['chunks']:.0f} | {t['singly']:.0f} "
            f"| {ratio[0]:.1f} | {ratio[1]:.0%} | {ratio[2]:.0%} | {t['official reset']:.1f} | {t['reset']:.1f} "
            f"| {ratio[3]:.1f} |",
            flush=True,
        )
    for name, statistic in (("median", np.median), ("least", np.min), ("most", np.max)):
        stepping, of_physics, singly, resetting, limit = statistic(ratios, axis=0)
        print(
            f"{name}: {stepping:.2f} x env.step (MuJoCo alone: {limit:.2f} x), {of_physics:.0%} of MuJoCo's rate, "
            f"{singly:.0%} one by one, {resetting:.1f} x env.reset"
        )


if __name__ == "__main__":
    main()

"""Milliseconds a frame, on one core, by OpenGL back end, size, and with or without what the default leaves out.

python benchmarks/rendering.py       about 2 minutes; prints a Markdown table of the back ends that work here
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np

from act_kit.errors import RenderError
from act_kit.parallel import LocalExecutor
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import RenderSettings, find_gl, render_episode
from act_kit.sim.simulator import Simulator

TASK = "pick-place-v3"
SIZES = (64, 128, 224, 480)


def record() -> tuple[InitialState, np.ndarray]:
    """Return an expert's episode of 60 steps."""
    (init_state,) = InitialStateDistribution(TASK).sample(1, seed=0, stream="validate")
    simulator, expert, physics = Simulator(TASK), ScriptedExpert(TASK), []
    state = simulator.reset(init_state)
    for _ in range(60):
        physics.append(simulator.physics())
        state = simulator.step_chunk(expert.act(state)[None]).state[-1]
    return init_state, np.array(physics)


def frame_ms(settings: RenderSettings, cameras: Sequence[str], init_state: InitialState, physics: np.ndarray) -> float:
    """Draw twice in this process and return the second time, in milliseconds a frame."""
    render_episode(settings, cameras, init_state, physics[:3])
    began = time.perf_counter()
    render_episode(settings, cameras, init_state, physics)
    return 1e3 * (time.perf_counter() - began) / (len(physics) * len(cameras))


def main() -> None:
    """Print the table."""
    init_state, physics = record()
    columns = [
        *((f"{size} px", RenderSettings(height_px=size, width_px=size), ["corner4"], physics) for size in SIZES),
        ("128 px, two cameras", RenderSettings(), ["corner4", "gripperPOV"], physics),
        (
            "128 px with shadows, reflections, multisampling",
            RenderSettings(shadows=True, reflections=True, multisampling=4),
            ["corner4"],
            physics[:6],
        ),
    ]
    print(f"| back end | {' | '.join(name for name, *_ in columns)} |\n" + "| --- " * (1 + len(columns)) + "|")
    for backend in ("egl", "osmesa"):
        os.environ["MUJOCO_GL"] = backend
        find_gl.cache_clear()
        try:
            gl = find_gl()
        except RenderError:
            print(f"| {backend} | {' | '.join(['does not work here'] * len(columns))} |")
            continue
        cells = []
        for _, settings, cameras, states in columns:
            with LocalExecutor(1, gl.environment) as executor:
                (ms,) = executor.map(frame_ms, [(settings, cameras, init_state, states)])
            cells.append(f"{ms:.1f}")
        print(f"| {gl} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

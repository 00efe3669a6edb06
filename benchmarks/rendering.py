"""Milliseconds a frame, on one core, by OpenGL back end, size and look.

python benchmarks/rendering.py                     about 3 minutes; prints a Markdown table
python benchmarks/rendering.py --processor-time    for a busy machine; without a GPU, whose time does not count
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np

from act_kit.errors import RenderError
from act_kit.parallel import LocalExecutor
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.looks import LOOKS
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


def frame_ms(
    settings: RenderSettings,
    cameras: Sequence[str],
    init_state: InitialState,
    physics: np.ndarray,
    in_processor_time: bool,
) -> float:
    """Draw twice in this process and return the second time, in milliseconds a frame."""
    clock = time.process_time if in_processor_time else time.perf_counter
    render_episode(settings, cameras, init_state, physics[:3])
    began = clock()
    render_episode(settings, cameras, init_state, physics)
    return 1e3 * (clock() - began) / (len(physics) * len(cameras))


def looks(physics: np.ndarray) -> Iterator[tuple[str, RenderSettings, list[str], np.ndarray]]:
    """Return the columns of the other looks, which are slow in software, so fewer frames are drawn."""
    for look in ("metaworld", "lerobot"):
        for size in (128, 480):
            settings = RenderSettings(height_px=size, width_px=size, look=look)
            yield f"{size} px, {look}", settings, list(LOOKS[look].cameras), physics[:12]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor-time", action="store_true")
    in_processor_time = parser.parse_args().processor_time
    init_state, physics = record()
    columns = [
        *((f"{size} px", RenderSettings(height_px=size, width_px=size), ["corner4"], physics) for size in SIZES),
        ("128 px, two cameras", RenderSettings(), ["corner4", "gripperPOV"], physics),
        *looks(physics),
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
                (ms,) = executor.map(frame_ms, [(settings, cameras, init_state, states, in_processor_time)])
            cells.append(f"{ms:.1f}")
        print(f"| {gl} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Pictures from recorded physics."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.errors import RenderError
from act_kit.sim.render import Renderer, RenderSettings, find_gl, make_render_pool, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.starts import Start, StartLaw


def record(task: str, num_steps: int) -> tuple[Start, np.ndarray]:
    (start,) = StartLaw(task).sample(1, seed=0, stream="collect")
    simulator = Simulator(task)
    simulator.reset(start)
    physics = []
    for _ in range(num_steps):
        simulator.step_chunk(np.full((5, 4), [0.3, 0.5, -0.5, 1.0]))
        physics.append(simulator.physics())
    return start, np.array(physics)


def from_metaworld(task: str, start: Start, num_steps: int, size_px: int) -> np.ndarray:
    """Draw with Meta-World's own renderer while stepping, in this worker process."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    env = ALL_V3_ENVIRONMENTS[task](render_mode="rgb_array", camera_name="corner4", width=size_px, height=size_px)
    env._partially_observable = False
    del env.sawyer_observation_space
    env._set_task_called = env._freeze_rand_vec = True
    env._last_rand_vec = start.array
    env.reset()
    for _ in range(5 * num_steps):
        env.step(np.array([0.3, 0.5, -0.5, 1.0], dtype=np.float32))
    return np.asarray(env.render())[::-1, ::-1]


@pytest.mark.gl
@pytest.mark.parametrize("task", ["pick-place-v3", "shelf-place-v3"])
def test_frames_show_what_metaworld_shows(gl: str, task: str) -> None:
    """But for shadows, reflections and smoothed edges, which are off: most of the picture must agree."""
    start, physics = record(task, 4)
    with make_render_pool(1) as pool:
        frames = pool.submit(render_episode, RenderSettings(size_px=96), start, physics).result()
        again = pool.submit(render_episode, RenderSettings(size_px=96), start, physics).result()
    with make_render_pool(1) as pool:
        theirs = pool.submit(from_metaworld, task, start, 4, 96).result()
    assert frames.shape == (4, 96, 96, 3)
    assert np.array_equal(frames, again)
    assert not np.array_equal(frames[0], frames[-1])
    difference = np.abs(frames[-1].astype(int) - theirs.astype(int)).max(axis=-1)
    assert np.median(difference) < 40
    flipped = np.abs(frames[-1][::-1].astype(int) - theirs.astype(int)).max(axis=-1)
    assert difference.mean() < 0.5 * flipped.mean()


def test_blank_frames_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (start,) = StartLaw("reach-v3").sample(1, seed=0, stream="collect")
    renderer = object.__new__(Renderer)
    renderer.simulator = Simulator("reach-v3")
    renderer.settings = RenderSettings()
    monkeypatch.setattr(renderer, "_frame", lambda physics: np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(RenderError, match="Blank frames from camera corner4"):
        renderer.frames(start, np.zeros((2, 3)))


def test_without_a_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-library")
    find_gl.cache_clear()
    try:
        with pytest.raises(RenderError, match="apt-get install libegl1"):
            find_gl()
    finally:
        find_gl.cache_clear()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(RenderError, match="Did you mean 'corner4'"):
        RenderSettings(camera="korner4")
    with pytest.raises(RenderError, match="16 to 1024"):
        RenderSettings(size_px=4)

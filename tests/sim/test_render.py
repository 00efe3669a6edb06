"""Images from recorded physics."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from act_kit.errors import RenderError
from act_kit.parallel import LocalExecutor
from act_kit.sim import render as module
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import Gl, Renderer, RenderSettings, check_cameras, find_gl, render_episode
from act_kit.sim.simulator import Simulator

CAMERAS = ["corner4", "gripperPOV"]
SMALL = RenderSettings(height_px=96, width_px=96)
PUSH = np.tile(np.array([0.3, 0.5, -0.5, 1.0], dtype=np.float32), (5, 1))


def record(task: str, num_steps: int) -> tuple[InitialState, np.ndarray]:
    (init_state,) = InitialStateDistribution(task).sample(1, seed=0, stream="collect")
    simulator = Simulator(task)
    simulator.reset(init_state)
    physics = []
    for _ in range(num_steps):
        simulator.step_chunk(PUSH)
        physics.append(simulator.physics())
    return init_state, np.array(physics)


def render_metaworld(init_state: InitialState, num_steps: int) -> np.ndarray:
    """Step and render with Meta-World's own environment, in this worker process."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # make_environment has no render options

    env = ALL_V3_ENVIRONMENTS[init_state.task](render_mode="rgb_array", camera_name="corner4", width=96, height=96)
    env._partially_observable = False
    del env.sawyer_observation_space
    env._set_task_called = env._freeze_rand_vec = True
    env._last_rand_vec = init_state.array
    env.reset()
    for _ in range(num_steps):
        for action in PUSH:
            env.step(action)
    return np.asarray(env.render())[::-1, ::-1]


def render_engine(engine: str, init_state: InitialState, num_steps: int) -> np.ndarray:
    """Render an engine's state after each chunk; compare the last image with MuJoCo's own renderer."""
    simulator = Simulator(init_state.task, engine)
    renderer = Renderer(SMALL)
    simulator.reset(init_state)
    frames = []
    for _ in range(num_steps):
        simulator.step_chunk(PUSH)
        frames.append(renderer.draw(simulator, simulator.physics(), CAMERAS))
    with mujoco.Renderer(simulator.engine.model, SMALL.height_px, SMALL.width_px) as plain:
        plain.update_scene(simulator.engine.data, camera="gripperPOV")
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            plain.scene.flags[int(flag)] = False
        assert np.array_equal(plain.render(), frames[-1][1])
    return np.stack(frames)


@pytest.mark.gl
@pytest.mark.parametrize("task", ["pick-place-v3", "shelf-place-v3"])
def test_frames_agree_with_metaworlds_renderer(gl: Gl, task: str) -> None:
    """Most of the image agrees; shadows, reflections and multisampling are off."""
    init_state, physics = record(task, 4)
    with LocalExecutor(1, gl.environment) as executor:
        frames, again = executor.map(render_episode, [(SMALL, CAMERAS, init_state, physics)] * 2)
    with LocalExecutor(1, gl.environment) as executor:
        (expected,) = executor.map(render_metaworld, [(init_state, 4)])
    assert frames.images.shape == (4, 2, 96, 96, 3)
    assert np.array_equal(frames.images, again.images)
    assert frames.renderer == gl.renderer
    first, last = frames.images[0, 0], frames.images[-1, 0].astype(int)
    assert not np.array_equal(first, last)
    difference = np.abs(last - expected.astype(int)).max(axis=-1)
    assert np.median(difference) < 40
    flipped = np.abs(last[::-1] - expected.astype(int)).max(axis=-1)
    assert difference.mean() < 0.5 * flipped.mean()


@pytest.mark.e2e
@pytest.mark.gl
@pytest.mark.parametrize("task", ["door-open-v3", "basketball-v3"])
def test_both_engines_and_recorded_physics_give_the_same_images(gl: Gl, task: str) -> None:
    init_state, physics = record(task, 3)
    images: list[Any] = []
    jobs = [
        (render_engine, ("fast", init_state, 3)),
        (render_engine, ("reference", init_state, 3)),
        (render_episode, (SMALL, CAMERAS, init_state, physics)),
    ]
    for function, job in jobs:
        with LocalExecutor(1, gl.environment) as executor:  # one renderer per process
            images += executor.map(function, [job])  # type: ignore[arg-type]
    fast, reference, recorded = images
    assert np.array_equal(fast, reference)
    assert np.array_equal(fast, recorded.images)


def test_blank_frames_raise_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = Simulator("reach-v3")
    simulator.reset(InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")[0])
    renderer = Renderer(SMALL)
    renderer._canvases["reach-v3"] = SimpleNamespace(draw=lambda *_: np.zeros((1, 8, 8, 3), np.uint8))  # type: ignore[assignment]
    monkeypatch.setattr(module, "_gl_context", lambda: SimpleNamespace(make_current=lambda: None))
    with pytest.raises(RenderError, match="Blank frames from corner4"):
        renderer.draw(simulator, simulator.physics(), ["corner4"])


def test_without_an_opengl_library_the_error_contains_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "no-such-library")
    find_gl.cache_clear()
    try:
        with pytest.raises(RenderError, match="apt-get install libegl1"):
            find_gl()
    finally:
        find_gl.cache_clear()


def test_software_rendering_is_used_if_a_gpu_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated GPU works in one process, and hangs in several."""
    probes: list[tuple[str, int]] = []

    def probe(environment: dict[str, str], num: int = 1) -> str | None:
        probes.append((environment["MUJOCO_GL"], num))
        if environment["MUJOCO_GL"] == "osmesa":
            return "llvmpipe (LLVM 15)"
        return "NVIDIA H100/PCIe" if num == 1 else None

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(module, "_probe", probe)
    monkeypatch.setattr(module, "_MESA_VENDOR", Path("/nowhere"))
    assert find_gl.__wrapped__(4).backend == "osmesa"
    assert probes == [("egl", 1), ("egl", 4), ("osmesa", 1)]


def test_a_probe_that_hangs_is_killed_after_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(module, "_PROBE_TIMEOUT_S", 0.2)
    running: list[subprocess.Popen[str]] = []
    original = subprocess.Popen

    def popen(*arguments: object, **options: object) -> subprocess.Popen[str]:
        running.append(original(*arguments, **options))  # type: ignore[call-overload]
        return running[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert module._probe({}, 2) is None
    assert [process.poll() is None for process in running] == [False, False]


def test_errors_name_invalid_settings() -> None:
    with pytest.raises(RenderError, match="Did you mean 'corner4'"):
        check_cameras(["korner4"])
    with pytest.raises(RenderError, match="listed twice"):
        check_cameras(["corner4", "corner4"])
    with pytest.raises(RenderError, match="expected 16 to 1024"):
        RenderSettings.of_size("4")
    with pytest.raises(RenderError, match="expected 128, or 480x640"):
        RenderSettings.of_size("large")
    assert RenderSettings.of_size("48x64") == RenderSettings(height_px=48, width_px=64)

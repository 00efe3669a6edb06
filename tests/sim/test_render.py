"""Images from recorded physics."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest

from act_kit.config import simulation
from act_kit.errors import RenderError
from act_kit.parallel import LocalExecutor
from act_kit.sim import render as module
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.looks import LOOKS
from act_kit.sim.render import Gl, Renderer, RenderSettings, check_cameras, find_gl, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS

CAMERAS = ["corner4", "gripperPOV"]
SMALL = RenderSettings(height_px=96, width_px=96)
PUSH = np.tile(np.array([0.3, 0.5, -0.5, 1.0], dtype=np.float32), (5, 1))

GOAL_OF_THE_LAST_EPISODE = frozenset({"push-v3", "push-back-v3"})
"""Tasks where Meta-World's image of a reset shows the goal at a height that depends on the last episode."""


def record(task: str, num_chunks: int) -> tuple[InitialState, np.ndarray]:
    """Return the physics after the reset and after each chunk of actions."""
    (init_state,) = InitialStateDistribution(task).sample(1, seed=0, stream="collect")
    simulator = Simulator(task)
    simulator.reset(init_state)
    physics = [simulator.physics()]
    for _ in range(num_chunks):
        simulator.step_chunk(PUSH)
        physics.append(simulator.physics())
    return init_state, np.array(physics)


def make_metaworld(init_state: InitialState, camera: str) -> Any:
    """Make Meta-World's own environment, reset to an initial state; it renders in this worker process."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # make_environment has no render options

    env = ALL_V3_ENVIRONMENTS[init_state.task](render_mode="rgb_array", camera_name=camera, width=96, height=96)
    env._partially_observable = False
    del env.sawyer_observation_space
    env._set_task_called = env._freeze_rand_vec = True
    env._last_rand_vec = init_state.array
    return env


def render_metaworld(init_state: InitialState, cameras: list[str], num_chunks: int) -> np.ndarray:
    """Render with Meta-World's own environment after the reset and after each chunk of actions."""
    env = make_metaworld(init_state, cameras[0])
    env.reset()
    frames = []
    for chunk in [PUSH[:0], *[PUSH] * num_chunks]:
        for action in chunk:
            env.step(action)
        for camera in cameras:
            env.mujoco_renderer.camera_id = env.model.camera(camera).id
            frames.append(env.render())
    return np.reshape(frames, (1 + num_chunks, len(cameras), 96, 96, 3))


def render_lerobot(init_state: InitialState, cameras: list[str], num_chunks: int) -> np.ndarray:
    """Render as LeRobot's environment does: huggingface/lerobot, src/lerobot/envs/metaworld.py, commit 973b2f2.

    Unlike there, both resets of an episode have the same goal, as in Meta-World's benchmarks.
    """
    assert cameras == ["corner2"]
    env = make_metaworld(init_state, "corner2")
    env.model.cam_pos[2] = [0.75, 0.075, 0.7]
    env.reset()
    frames = [np.flip(env.render(), (0, 1))]
    for _ in range(num_chunks):
        for action in PUSH:
            env.step(action)
        frames.append(np.flip(env.render(), (0, 1)))
    return np.stack(frames)[:, None]


def check_looks(gl: Gl, tasks: Sequence[str], look: str, cameras: list[str], num_chunks: int) -> None:
    """Compare a look with the environment that it is named after, pixel by pixel."""
    reference = {"metaworld": render_metaworld, "lerobot": render_lerobot}[look]
    episodes = [record(task, num_chunks) for task in tasks]
    settings = RenderSettings(height_px=96, width_px=96, look=look)
    with LocalExecutor(1, gl.environment) as executor:
        rendered = list(executor.map(render_episode, [(settings, cameras, *episode) for episode in episodes]))
    with LocalExecutor(1, gl.environment) as executor:
        jobs = [(init_state, cameras, num_chunks) for init_state, _ in episodes]
        expected = list(executor.map(reference, jobs))
    different = []
    for task, mine, theirs in zip(tasks, rendered, expected, strict=True):
        first = int(task in GOAL_OF_THE_LAST_EPISODE)
        if not np.array_equal(mine.images[first:], theirs[first:]):
            different.append(task)
    assert different == []


@pytest.mark.gl
@pytest.mark.parametrize(
    ("look", "task", "cameras"),
    [("metaworld", "door-open-v3", ["corner2", "gripperPOV"]), ("lerobot", "shelf-place-v3", ["corner2"])],
)
def test_a_look_equals_its_environments_images(gl: Gl, look: str, task: str, cameras: list[str]) -> None:
    """Also after the reset, when Meta-World's images show some outdated positions."""
    check_looks(gl, [task], look, cameras, 1)


@pytest.mark.e2e
@pytest.mark.gl
@pytest.mark.parametrize(("look", "cameras"), [("metaworld", ["corner3", "behindGripper"]), ("lerobot", ["corner2"])])
def test_looks_equal_their_environments_images_in_all_tasks(gl: Gl, look: str, cameras: list[str]) -> None:
    check_looks(gl, list(TASKS), look, cameras, 2)


@pytest.mark.gl
@pytest.mark.parametrize(("camera", "whole_px"), [("topview", 84), ("corner2", 152), ("behindGripper", 64)])
def test_closeups_are_parts_of_the_images(gl: Gl, camera: str, whole_px: int) -> None:
    episode = record("door-open-v3", 1)
    closeup = RenderSettings(height_px=64, width_px=64, look="closeup")
    whole = RenderSettings(height_px=whole_px, width_px=whole_px)
    with LocalExecutor(1, gl.environment) as executor:
        jobs = [(settings, [camera], *episode) for settings in (closeup, whole)]
        images, whole_images = (frames.images for frames in executor.map(render_episode, jobs))
    left, top, _ = LOOKS["closeup"].parts.get(camera, (0.0, 0.0, 1.0))
    rows, columns = (slice(round(edge * whole_px), round(edge * whole_px) + 64) for edge in (top, left))
    np.testing.assert_allclose(images, whole_images[:, :, rows, columns].astype(int), atol=1)


def test_settings_of_files_without_a_look_have_the_fast_one() -> None:
    old = {"height_px": 48, "width_px": 64, "shadows": False, "reflections": False, "multisampling": 0}
    assert RenderSettings.from_dict(old) == RenderSettings(height_px=48, width_px=64)
    settings = RenderSettings.of_size("48", "lerobot")
    assert RenderSettings.from_dict(asdict(settings)) == settings
    assert settings.flags == "--size 48x48 --look lerobot"
    with pytest.raises(RenderError, match=r"'lerobott' is not a look.*Did you mean 'lerobot'\?"):
        RenderSettings(look="lerobott")
    assert tuple(LOOKS) == simulation.LOOKS


def render_engine(engine: str, init_state: InitialState, num_steps: int) -> np.ndarray:
    """Render an engine's state after each chunk; compare the last image with MuJoCo's own renderer."""
    simulator = Simulator(init_state.task, engine)
    renderer = Renderer(SMALL)
    simulator.reset(init_state)
    frames = [renderer.draw(simulator, simulator.physics(), CAMERAS)]
    for _ in range(num_steps):
        simulator.step_chunk(PUSH)
        frames.append(renderer.draw(simulator, simulator.physics(), CAMERAS))
    simulator.engine.model.vis.quality.offsamples = 0
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
        (unrotated,) = executor.map(render_metaworld, [(init_state, ["corner4"], 4)])
    expected = unrotated[-1, 0, ::-1, ::-1]
    assert frames.images.shape == (5, 2, 96, 96, 3)
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

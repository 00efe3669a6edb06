"""Camera matrices: where a position is in an image."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.config.policy import FIXED_CAMERAS
from act_kit.parallel import LocalExecutor
from act_kit.sim.cameras import camera_matrices
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.looks import LOOKS
from act_kit.sim.render import CameraViews, Gl, RenderSettings, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS

HEIGHT_PX = 256


def project(matrices: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return the places (C, 2) of a position."""
    projected = matrices @ [*position, 1.0]
    places: np.ndarray = projected[:, :2] / projected[:, 2:]
    return places


def views(look: str, width_px: int = HEIGHT_PX) -> CameraViews:
    return CameraViews(
        cameras=FIXED_CAMERAS, settings=RenderSettings(height_px=HEIGHT_PX, width_px=width_px, look=look)
    )


@pytest.mark.gl
@pytest.mark.parametrize(
    ("look", "width_px"), [*((look, HEIGHT_PX) for look in LOOKS), ("fast", 320), ("closeup", 192)]
)
def test_the_goal_is_drawn_where_it_is_projected(gl: Gl, look: str, width_px: int) -> None:
    """From one episode to another, the image changes where either goal is."""
    simulator, chosen = Simulator("reach-v3"), views(look, width_px)
    first, second = InitialStateDistribution("reach-v3").sample(2, seed=3, stream="evaluate")
    images, places = [], []
    with LocalExecutor(1, gl.environment) as executor:
        for init_state in (first, second):
            state = simulator.reset(init_state)
            physics = simulator.physics()[None]
            (frames,) = executor.map(render_episode, [(chosen.settings, list(FIXED_CAMERAS), init_state, physics)])
            images.append(frames.images[0].astype(int))
            places.append(project(camera_matrices(chosen), state[36:39]))
    changed = np.abs(images[0] - images[1]).max(axis=-1) > 60
    for camera, is_changed in enumerate(changed):
        rows, columns = is_changed.nonzero()
        pixels = np.column_stack([columns, rows]) + 0.5
        for place in (places[0][camera], places[1][camera]):
            nearest = np.linalg.norm(pixels - (place + 1) / 2 * [width_px, HEIGHT_PX], axis=1).min()
            assert nearest < 3, f"{FIXED_CAMERAS[camera]} draws nothing at {place}"


@pytest.mark.parametrize("task", TASKS)
def test_closeups_show_objects_and_goals(task: str) -> None:
    """The cameras are those of the matrices in every task."""
    matrices, simulator = camera_matrices(views("closeup")), Simulator(task)
    for init_state in InitialStateDistribution(task).sample(3, seed=0, stream="evaluate"):
        state = simulator.reset(init_state)
        for name, matrix in zip(FIXED_CAMERAS, matrices, strict=True):
            camera = simulator.engine.data.camera(name)
            assert np.abs(matrix @ [*camera.xpos, 1.0]).max() < 1e-5, "the camera itself is projected to zero"
        for position in filter(np.any, (state[4:7], state[11:14], state[36:39])):
            assert np.abs(project(matrices, position)).max() <= 1, f"a camera does not show {position}"

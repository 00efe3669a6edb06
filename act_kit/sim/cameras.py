"""Where a position is in the image of a camera that does not move."""

from __future__ import annotations

import mujoco
import numpy as np

from act_kit.config.policy import FIXED_CAMERAS
from act_kit.sim.looks import find_look
from act_kit.sim.render import CameraViews
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import TASKS


def camera_matrices(views: CameraViews) -> np.ndarray:
    """Return the matrices, float64 (C, 3, 4), that project positions into the images of the cameras, which do not move.

    The product of a matrix and (x, y, z, 1), meters, is (u, v, 1) times the distance from the camera; u is to the right
    and v down, and both are in [-1, 1] inside the image. Every task has the same cameras.
    """
    settings = views.settings
    look = find_look(settings.look)
    model = Simulator(next(iter(TASKS))).engine.model
    matrices: list[np.ndarray] = []
    for name in views.cameras:
        assert name in FIXED_CAMERAS, f"{name} moves"
        camera = model.camera(name)
        axes = np.empty(9)
        mujoco.mju_quat2Mat(axes, camera.quat)
        right, up, back = axes.reshape(3, 3).T
        sign = -1 if name in look.rotated else 1
        scale = sign / np.tan(np.radians(camera.fovy[0]) / 2)  # fovy is the angle of the height
        rows = np.stack([scale * settings.height_px / settings.width_px * right, -scale * up, -back])
        left, top, side = look.parts.get(name, (0.0, 0.0, 1.0))
        for row, begin in enumerate((left, top)):
            # From [-1, 1] in the whole image to [-1, 1] in its part.
            rows[row] = (rows[row] + (1 - 2 * begin - side) * rows[2]) / side
        position = np.array(look.positions_m.get(name, camera.pos))
        matrices.append(np.column_stack([rows, -rows @ position]))
    return np.stack(matrices)

"""Images for the operator, rendered in a separate process so that rendering never delays a step."""

from __future__ import annotations

import asyncio
import functools
import io
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from act_kit.sim.initial_states import InitialState
from act_kit.sim.looks import LOOKS
from act_kit.sim.render import Gl, RenderSettings, get_renderer
from act_kit.sim.simulator import Simulator
from act_kit.workers import Pool, environment

_JPEG_QUALITY = 85


class ImageWorker:
    """Renderer of states as JPEGs, the cameras side by side, in a separate process."""

    def __init__(self, gl: Gl, cameras: Sequence[str], settings: RenderSettings) -> None:
        self._gl = gl
        self._view = settings, tuple(cameras)
        self._pool = Pool(1)

    async def draw(self, init_state: InitialState, physics: np.ndarray) -> bytes:
        """Return a JPEG of the physics state ``physics``, float64 (P,), of an episode from ``init_state``.

        Raises:
            BrokenProcessPool: The rendering process died twice in a row.
        """
        try:
            return await self._draw(init_state, physics)
        except BrokenProcessPool:
            self._pool = Pool(1)
            return await self._draw(init_state, physics)

    async def _draw(self, init_state: InitialState, physics: np.ndarray) -> bytes:
        with environment(self._gl.environment):  # the process starts with the first call and inherits it
            job = self._pool.submit(_draw_jpeg, *self._view, init_state, physics)
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """End the rendering process."""
        self._pool.shutdown(cancel_futures=True)


_simulator = functools.lru_cache(maxsize=1)(Simulator)


@functools.lru_cache(maxsize=1)
def _reset_simulator(init_state: InitialState) -> Simulator:
    simulator = _simulator(init_state.task)
    simulator.reset(init_state)
    return simulator


def _draw_jpeg(
    settings: RenderSettings, cameras: tuple[str, ...], init_state: InitialState, physics: np.ndarray
) -> bytes:
    from PIL import Image

    frames = get_renderer(settings).draw(_reset_simulator(init_state), physics, cameras)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def ground_axes(simulator: Simulator, camera: str) -> np.ndarray:
    """Return the directions right, away and up in a camera's image, as rows in world axes; float64 (3, 3).

    Right and away lie in the plane of the table.
    """
    data = simulator.engine.data
    sign = -1.0 if camera in LOOKS["fast"].rotated else 1.0
    right_x, right_y = sign * data.camera(camera).xmat.reshape(3, 3)[:2, 0]
    right = np.array([right_x, right_y, 0.0]) / np.hypot(right_x, right_y)
    up = np.array([0.0, 0.0, 1.0])
    return np.stack([right, np.cross(up, right), up])

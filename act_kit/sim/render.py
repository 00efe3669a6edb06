"""Pictures of the simulation, made afterwards from recorded physics, in processes of their own.

MuJoCo binds to one OpenGL library when it is imported, renderers of one process disturb each other, and a driver can
hang. So a renderer lives in a worker process, and which library works is found out in another one with a timeout.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from act_kit.errors import RenderError, did_you_mean
from act_kit.sim.simulator import Simulator
from act_kit.sim.starts import Start
from act_kit.sim.workers import make_pool

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
_ROTATED = frozenset({"corner", "corner2", "corner3", "corner4"})

INSTALL_HINT = "no OpenGL library works here; for videos: apt-get install libegl1 libopengl0 libgl1-mesa-dri"


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """All that decides what a frame looks like.

    Shadows, reflections and multisampling are off: in software they take 310 ms of a frame's 330.
    """

    camera: str = "corner4"
    size_px: int = 128
    shadows: bool = False
    reflections: bool = False
    multisampling: int = 0

    def __post_init__(self) -> None:
        if self.camera not in CAMERAS:
            raise RenderError(
                f"'{self.camera}' is not a camera; there are {', '.join(CAMERAS)}.{did_you_mean(self.camera, CAMERAS)}"
            )
        if not 16 <= self.size_px <= 1024:
            raise RenderError(f"A frame of {self.size_px} px is out of range: 16 to 1024.")


class Renderer:
    """Draws recorded physics of one task. One per process, never closed while the process renders."""

    def __init__(self, task: str, settings: RenderSettings) -> None:
        import mujoco

        self.simulator = Simulator(task)
        self.settings = settings
        model = self.simulator.env.model
        model.vis.quality.offsamples = settings.multisampling
        model.vis.global_.offwidth = model.vis.global_.offheight = max(settings.size_px, 64)
        self._renderer = mujoco.Renderer(model, height=settings.size_px, width=settings.size_px)
        # Left to the interpreter's end, it is freed after the library it needs, with a page of complaints.
        atexit.register(self._renderer.close)
        self._flags = {
            int(mujoco.mjtRndFlag.mjRND_SHADOW): settings.shadows,
            int(mujoco.mjtRndFlag.mjRND_REFLECTION): settings.reflections,
        }

    def frames(self, start: Start, physics: np.ndarray) -> np.ndarray:
        """Draw T recorded states, float64 (T, P), of an episode from ``start``; uint8 (T, size, size, 3).

        Raises:
            RenderError: A frame came out blank.
        """
        self.simulator.reset(start)  # the start also moves bodies of the model, which the physics do not hold
        frames = np.stack([self._frame(row) for row in physics])
        if frames.reshape(len(frames), -1).std(axis=1).min() < 1.0:
            raise RenderError(f"Blank frames from camera {self.settings.camera} (MUJOCO_GL={os.environ['MUJOCO_GL']}).")
        return frames

    def _frame(self, physics: np.ndarray) -> np.ndarray:
        self.simulator.set_physics(physics)
        self._renderer.update_scene(self.simulator.env.data, camera=self.settings.camera)
        for flag, value in self._flags.items():
            self._renderer.scene.flags[flag] = value
        frame: np.ndarray = self._renderer.render()
        return frame[::-1, ::-1] if self.settings.camera in _ROTATED else frame


_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().std() > 1
from OpenGL import GL
print("GL_RENDERER:", GL.glGetString(GL.GL_RENDERER).decode())
"""


@functools.cache
def find_gl() -> tuple[str, str]:
    """Find an OpenGL back end that draws: ``("egl", "llvmpipe (LLVM …)")``. A set ``MUJOCO_GL`` is the only one tried.

    Raises:
        RenderError: None works; the message says which package to install.
    """
    wanted = os.environ.get("MUJOCO_GL")
    for backend in [wanted] if wanted else ["egl", "osmesa"]:
        try:
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE],
                env={**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend},
                capture_output=True,
                text=True,
                timeout=60,
            )
        except subprocess.TimeoutExpired:
            continue
        if probe.returncode == 0:
            return backend, probe.stdout.rpartition("GL_RENDERER: ")[2].strip()
    raise RenderError(INSTALL_HINT)


def make_render_pool(num_workers: int) -> ProcessPoolExecutor:
    """Start worker processes bound to the OpenGL library that :func:`find_gl` found."""
    backend, _ = find_gl()
    # Inherited, so that it holds before anything a worker unpickles can import MuJoCo.
    os.environ.update(MUJOCO_GL=backend, PYOPENGL_PLATFORM=backend)
    return make_pool(num_workers)


@functools.lru_cache(maxsize=1)
def _renderer(task: str, settings: RenderSettings) -> Renderer:
    return Renderer(task, settings)


def render_episode(settings: RenderSettings, start: Start, physics: np.ndarray) -> np.ndarray:
    """Render in a worker of :func:`make_render_pool`, which keeps its renderer; see :meth:`Renderer.frames`."""
    return _renderer(start.task, settings).frames(start, physics)


if __name__ == "__main__":
    print(*find_gl())

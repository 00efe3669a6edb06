"""Pictures of the simulation, drawn from recorded physics or from a simulator, in processes of their own.

MuJoCo binds to one OpenGL library when it is imported, OpenGL contexts of one process disturb each other, and a driver
can hang. So what draws lives in worker processes, with one context in each for all its tasks, and which library works
is found out in other processes, with a timeout.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import RenderError, did_you_mean
from act_kit.sim.engine import PHYSICS
from act_kit.sim.initial_states import InitialState
from act_kit.sim.simulator import Simulator
from act_kit.sim.threads import cache_per_thread

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
_ROTATED = frozenset({"corner", "corner2", "corner3", "corner4"})
_SHADOW_MAP_PX = 4096
"""Side of the shadows' texture; Meta-World's."""

_MAX_GEOMS = 1000
"""Of a scene: twenty times what the richest task has."""

INSTALL_HINT = "no OpenGL library works here; for pictures: apt-get install libegl1 libopengl0 libgl1-mesa-dri"

_MESA_VENDOR = Path("/usr/share/glvnd/egl_vendor.d/50_mesa.json")
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")
_PROBE_TIMEOUT_S = 60


def check_cameras(cameras: Sequence[str]) -> None:
    """Raise :class:`RenderError` unless Meta-World has every one of these cameras, and none is named twice."""
    for camera in cameras:
        if camera not in CAMERAS:
            raise RenderError(
                f"'{camera}' is not a camera; there are {', '.join(CAMERAS)}.{did_you_mean(camera, CAMERAS)}"
            )
    if len(set(cameras)) < len(cameras):
        raise RenderError(f"A camera is named twice: {', '.join(cameras)}.")


def is_rotated(camera: str) -> bool:
    """Tell whether a camera of Meta-World is upside down, so that its frames are turned before anybody sees them."""
    return camera in _ROTATED


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """All that decides what a camera's frame looks like.

    Shadows, reflections and multisampling are off: in software they take 310 ms of a frame's 330.
    """

    height_px: int = 128
    width_px: int = 128
    shadows: bool = False
    reflections: bool = False
    multisampling: int = 0

    def __post_init__(self) -> None:
        if not 16 <= self.height_px <= 1024 or not 16 <= self.width_px <= 1024:
            raise RenderError(f"A frame of {self} is out of range: 16 to 1024 px.")

    def __str__(self) -> str:
        return f"{self.height_px}x{self.width_px}"

    @classmethod
    def of_size(cls, size: str) -> RenderSettings:
        """Return settings for a size as ``--size`` takes it: ``128``, or ``480x640`` for height and width."""
        parts = size.split("x")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise RenderError(f"'{size}' is not a size. Write 128, or 480x640 for height and width in pixels.")
        return cls(height_px=int(parts[0]), width_px=int(parts[-1]))


@dataclass(frozen=True, kw_only=True)
class CameraViews:
    """The cameras of a policy, whose pictures are drawn where the simulators are.

    Attributes:
        cameras: Their names, in the order of the images.
        settings: What a frame looks like.
    """

    cameras: tuple[str, ...]
    settings: RenderSettings


@functools.cache
def _gl_context() -> Any:
    """Return the OpenGL context of this process: one, and never another after it, whatever is drawn.

    Several disturb each other, and frames drawn after one of them was closed come out black.
    """
    context = mujoco.GLContext(1, 1)  # a size that nobody uses: MuJoCo draws into buffers of its own
    # Left to the interpreter's end, it is freed after the library it needs, with a page of complaints.
    atexit.register(context.free)
    return context


_gl_lock = threading.RLock()


@contextmanager
def _opengl() -> Generator[None]:
    """Use the context in this thread: a context belongs to one thread, until that lets go of it."""
    with _gl_lock:
        context = _gl_context()
        context.make_current()
        try:
            yield
        finally:
            _let_go(type(context).__module__)


def _let_go(backend: str) -> None:
    match backend:
        case "mujoco.egl":
            from OpenGL import EGL

            EGL.eglReleaseThread()
        case "mujoco.osmesa":
            from OpenGL import GL, osmesa

            osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)


class _Canvas:
    """What drawing one task takes: its meshes and textures where OpenGL wants them, a scene, a state to draw."""

    def __init__(self, model: mujoco.MjModel, settings: RenderSettings) -> None:
        self._flags = {
            int(mujoco.mjtRndFlag.mjRND_SHADOW): settings.shadows,
            int(mujoco.mjtRndFlag.mjRND_REFLECTION): settings.reflections,
        }
        self._shape = settings.height_px, settings.width_px, 3
        self._whole = mujoco.MjrRect(0, 0, settings.width_px, settings.height_px)
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._data = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        model.vis.quality.offsamples = settings.multisampling
        model.vis.quality.shadowsize = _SHADOW_MAP_PX if settings.shadows else 0  # 67 MB, drawn or not
        model.vis.global_.offwidth, model.vis.global_.offheight = settings.width_px, settings.height_px
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        atexit.register(self._free)

    def _free(self) -> None:
        with _opengl():
            self._context.free()

    def draw(self, model: mujoco.MjModel, physics: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
        """Draw a state of the task, whose bodies and sites are where ``model`` has them."""
        mujoco.mj_setState(model, self._data, physics.astype(np.float64), PHYSICS)
        mujoco.mj_forward(model, self._data)
        # Another task may have been drawn since, into a buffer of its own.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        return np.stack([self._frame(model, camera) for camera in cameras])

    def _frame(self, model: mujoco.MjModel, camera: str) -> np.ndarray:
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model, self._data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        for flag, value in self._flags.items():
            self._scene.flags[flag] = value
        mujoco.mjr_render(self._whole, self._scene, self._context)
        frame = np.empty(self._shape, dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, self._whole, self._context)
        # OpenGL's first line is the lowest; Meta-World's corners are upside down.
        return frame[:, ::-1] if is_rotated(camera) else frame[::-1]


class Renderer:
    """Draws simulators of any tasks, side by side in the one OpenGL context of its process.

    A task takes 35 MB, from the first frame of it to the end of the process, and 0.2 s before that frame.
    """

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        self._canvases: dict[str, _Canvas] = {}

    def draw(self, simulator: Simulator, physics: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
        """Draw a state, float64 (P,), of the episode that ``simulator`` was reset to; uint8 (C, H, W, 3).

        The simulator itself stays as it is. Threads take turns.

        Raises:
            RenderError: A frame came out blank.
            ArrayError: The state is none of the simulator's task.
        """
        task = simulator.task.name
        physics = as_array(physics, "physics", (simulator.physics_dim,))
        with _opengl(), simulator.engine.hold_model() as model:
            if task not in self._canvases:
                self._canvases[task] = _Canvas(model, self.settings)
            frames = self._canvases[task].draw(model, physics, cameras)
        if frames.reshape(len(cameras), -1).std(axis=1).min() < 1.0:
            raise RenderError(f"Blank frames from {', '.join(cameras)} (MUJOCO_GL={os.environ.get('MUJOCO_GL')}).")
        return frames


@functools.cache
def get_renderer(settings: RenderSettings) -> Renderer:
    """Return this process's renderer of some settings, which serves all who draw with them."""
    return Renderer(settings)


@dataclass(frozen=True)
class Gl:
    """An OpenGL library that draws.

    Attributes:
        backend: MuJoCo's name for it: egl or osmesa.
        renderer: What it calls itself, ``GL_RENDERER``: a GPU, or llvmpipe for software.
        environment: The variables that choose it; they must be set before MuJoCo is imported.
    """

    backend: str
    renderer: str
    environment: dict[str, str]

    def __str__(self) -> str:
        return f"{self.backend} on {self.renderer}"


_PROBE = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a library that hangs does not outlive its parent
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


def _probe(environment: dict[str, str], num: int = 1) -> str | None:
    """Draw in ``num`` processes at once; return what the library calls itself, or None if one fails or hangs."""
    probes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROBE], env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for _ in range(num)
    ]  # fmt: skip
    try:
        outputs = [probe.communicate(timeout=_PROBE_TIMEOUT_S)[0] for probe in probes]
    except subprocess.TimeoutExpired:
        return None
    finally:
        for probe in probes:
            probe.kill()
            probe.communicate()
    if any(probe.returncode for probe in probes):
        return None
    return outputs[0].rpartition("GL_RENDERER: ")[2].strip()


@functools.cache
def find_gl(num_processes: int = 1) -> Gl:
    """Find an OpenGL library that draws, in so many processes at once: a GPU's, else Mesa's, else OSMesa.

    A set ``MUJOCO_GL`` is the only one tried. Several renderers at once have been seen to hang on a GPU where one
    works; software is not tried twice.

    Raises:
        RenderError: None works; the message says which package to install.
    """
    wanted = os.environ.get("MUJOCO_GL")
    choices: list[dict[str, str]] = [{"MUJOCO_GL": wanted or "egl", "PYOPENGL_PLATFORM": wanted or "egl"}]
    if not wanted:
        if _MESA_VENDOR.exists():
            choices.append({**choices[0], "__EGL_VENDOR_LIBRARY_FILENAMES": str(_MESA_VENDOR)})
        choices.append({"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"})
    for environment in choices:
        renderer = _probe(environment)
        if renderer is None:
            continue
        if renderer.startswith(_SOFTWARE):
            # Every processor has a renderer of its own: threads of each would only get in each other's way.
            return Gl(environment["MUJOCO_GL"], renderer, {**environment, "LP_NUM_THREADS": "1"})
        if num_processes == 1 or _probe(environment, num_processes) is not None:
            return Gl(environment["MUJOCO_GL"], renderer, environment)
    raise RenderError(INSTALL_HINT)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The pictures of an episode.

    Attributes:
        images: uint8 (T, C, H, W, 3), by step and camera.
        renderer: ``GL_RENDERER`` of who drew them.
    """

    images: np.ndarray
    renderer: str


_get_simulator = cache_per_thread(Simulator, None)
"""What this thread draws recorded episodes of a task with."""


def render_episode(
    settings: RenderSettings, cameras: Sequence[str], init_state: InitialState, physics: np.ndarray
) -> Frames:
    """Draw T recorded states, float64 (T, P), of an episode from ``init_state``, in a process that has a GL library set."""
    from OpenGL import GL

    simulator, renderer = _get_simulator(init_state.task), get_renderer(settings)
    simulator.reset(init_state)  # the start also moves bodies of the model, which the physics do not hold
    images = np.stack([renderer.draw(simulator, row, cameras) for row in physics])
    with _opengl():
        return Frames(images=images, renderer=GL.glGetString(GL.GL_RENDERER).decode())


if __name__ == "__main__":
    print(find_gl())

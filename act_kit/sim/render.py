"""Rendering of images from recorded physics or from a simulator, in worker processes.

MuJoCo binds to one OpenGL library when it is imported, several OpenGL contexts in one process interfere, and a driver
can hang. So rendering runs in worker processes with one context for all tasks, and the search for a working library
runs in other processes, with a timeout.
"""

from __future__ import annotations

import atexit
import copy
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from act_kit.arrays import as_array
from act_kit.errors import RenderError, did_you_mean
from act_kit.sim.engine import PHYSICS, Engine, get_physics
from act_kit.sim.initial_states import InitialState
from act_kit.sim.looks import LOOKS, find_look
from act_kit.sim.simulator import Simulator
from act_kit.sim.threads import cache_per_thread

CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4", "behindGripper", "gripperPOV")
_MAX_GEOMS = 1000
"""Maximum number of geoms of a scene: twenty times that of the largest task."""

INSTALL_HINT = "no OpenGL library works here. Fix: apt-get install libegl1 libopengl0 libgl1-mesa-dri"

_MESA_VENDOR = Path("/usr/share/glvnd/egl_vendor.d/50_mesa.json")
_SOFTWARE = ("llvmpipe", "softpipe", "swrast")
_PROBE_TIMEOUT_S = 60


def check_cameras(cameras: Sequence[str]) -> None:
    """Raise :class:`RenderError` if a camera does not exist in Meta-World or is listed twice."""
    for camera in cameras:
        if camera not in CAMERAS:
            raise RenderError(
                f"'{camera}' is not a camera; choose from: {', '.join(CAMERAS)}.{did_you_mean(camera, CAMERAS)}"
            )
    if len(set(cameras)) < len(cameras):
        raise RenderError(f"A camera is listed twice: {', '.join(cameras)}.")


@dataclass(frozen=True, kw_only=True)
class RenderSettings:
    """Settings of a camera's frame.

    Attributes:
        height_px, width_px: Size.
        look: Name of the look; see :mod:`act_kit.sim.looks`.
    """

    height_px: int = 128
    width_px: int = 128
    look: str = "fast"

    def __post_init__(self) -> None:
        find_look(self.look)
        if not 16 <= self.height_px <= 1024 or not 16 <= self.width_px <= 1024:
            raise RenderError(f"A frame of {self} is out of range: expected 16 to 1024 px.")

    def __str__(self) -> str:
        size = f"{self.height_px}x{self.width_px}"
        return size if self.look == "fast" else f"{self.look} {size}"

    @property
    def flags(self) -> str:
        """Flags of ``act render`` for these settings."""
        return f"--size {self.height_px}x{self.width_px} --look {self.look}"

    @classmethod
    def of_size(cls, size: str, look: str = "fast") -> RenderSettings:
        """Return settings for a size in the format of ``--size``: ``128``, or ``480x640`` for height and width.

        Raises:
            RenderError: The size has another format or is out of range, or the look does not exist.
        """
        parts = size.split("x")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise RenderError(f"'{size}' is not a size: expected 128, or 480x640 for height and width in pixels.")
        return cls(height_px=int(parts[0]), width_px=int(parts[-1]), look=look)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RenderSettings:
        """Read the values that ``asdict`` returns; files written before there were looks contain the fast one.

        Raises:
            RenderError, KeyError, TypeError: The values are incomplete or invalid.
        """
        look = values.get("look", "fast")
        return cls(height_px=values["height_px"], width_px=values["width_px"], look=look)


@dataclass(frozen=True, kw_only=True)
class CameraViews:
    """Cameras of a policy; their images are rendered in the processes of the simulators.

    Attributes:
        cameras: Names of the cameras, in the order of the images.
        settings: Settings of a frame.
    """

    cameras: tuple[str, ...]
    settings: RenderSettings


@functools.cache
def _gl_context() -> Any:
    """Return the only OpenGL context of this process.

    Several contexts interfere, and frames rendered after one of them was closed are black.
    """
    context = mujoco.GLContext(1, 1)  # the size is unused: MuJoCo renders into its own buffers
    # Without this, the interpreter frees it after the library it needs, with a page of warnings.
    atexit.register(context.free)
    return context


_gl_lock = threading.RLock()


@contextmanager
def _opengl() -> Generator[None]:
    """Bind the context to this thread; a context is bound to one thread until that thread releases it."""
    with _gl_lock:
        context = _gl_context()
        context.make_current()
        try:
            yield
        finally:
            _release_context(type(context).__module__)


def _release_context(backend: str) -> None:
    match backend:
        case "mujoco.egl":
            from OpenGL import EGL

            EGL.eglReleaseThread()
        case "mujoco.osmesa":
            from OpenGL import GL, osmesa

            osmesa.OSMesaMakeCurrent(None, None, GL.GL_FLOAT, 0, 0)


class _Canvas:
    """OpenGL resources for rendering one task: its meshes and textures, a scene, and MuJoCo data."""

    def __init__(self, model: mujoco.MjModel, settings: RenderSettings) -> None:
        self._look = LOOKS[settings.look]
        self._shape = settings.height_px, settings.width_px, 3
        self._whole = mujoco.MjrRect(0, 0, settings.width_px, settings.height_px)
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._data = mujoco.MjData(model)
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        quality = model.vis.quality
        samples, shadow_map_px = quality.offsamples, quality.shadowsize
        if not self._look.as_metaworld:
            quality.offsamples = quality.shadowsize = 0  # 67 MB, even without shadows
        model.vis.global_.offwidth, model.vis.global_.offheight = settings.width_px, settings.height_px
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        quality.offsamples, quality.shadowsize = samples, shadow_map_px  # the model is shared with other looks
        atexit.register(self._free)

    def _free(self) -> None:
        with _opengl():
            self._context.free()

    def draw(self, engine: Engine, model: mujoco.MjModel, physics: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
        """Render a physics state with the body and site positions of ``model``, which ``engine`` holds."""
        if self._look.as_metaworld and np.array_equal(physics, get_physics(model, engine.data)):
            # After a reset, derived positions can be outdated, and Meta-World's images show them.
            data = copy.copy(engine.data)
        else:
            data = self._data
            mujoco.mj_setState(model, data, physics.astype(np.float64), PHYSICS)
            mujoco.mj_forward(model, data)
        for name, position_m in self._look.positions_m.items():
            data.camera(name).xpos = position_m
        # Another task may have been rendered since, into its own buffer.
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        return np.stack([self._frame(model, data, camera) for camera in cameras])

    def _frame(self, model: mujoco.MjModel, data: mujoco.MjData, camera: str) -> np.ndarray:
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
        if not self._look.as_metaworld:
            self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
            self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        mujoco.mjr_render(self._viewport(camera), self._scene, self._context)
        frame = np.empty(self._shape, dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, self._whole, self._context)
        return frame[:, ::-1] if camera in self._look.rotated else frame[::-1]  # OpenGL's first row is the lowest

    def _viewport(self, camera: str) -> mujoco.MjrRect:
        """Return where the camera's whole image lies, in pixels from the lower left corner of the frame."""
        if camera not in self._look.parts:
            return self._whole
        left, top, side = self._look.parts[camera]
        is_rotated = camera in self._look.rotated
        x, y = (1 - left - side, top) if is_rotated else (left, 1 - top - side)
        width, height = round(self._whole.width / side), round(self._whole.height / side)
        return mujoco.MjrRect(-round(x * width), -round(y * height), width, height)


class Renderer:
    """Renderer of simulators of any tasks, in the OpenGL context of its process.

    Each task takes 35 MB from its first frame to the end of the process, and 0.2 s before that frame.
    """

    def __init__(self, settings: RenderSettings) -> None:
        self.settings = settings
        self._canvases: dict[str, _Canvas] = {}

    def draw(self, simulator: Simulator, physics: np.ndarray, cameras: Sequence[str]) -> np.ndarray:
        """Render a physics state, float64 (P,), of the current episode of ``simulator``; return uint8 (C, H, W, 3).

        The state of the simulator does not change. Only one thread renders at a time.

        Raises:
            RenderError: A frame is blank.
            ArrayError: ``physics`` is not a state of the simulator's task.
        """
        task = simulator.task.name
        physics = as_array(physics, "physics", (simulator.physics_dim,))
        with _opengl(), simulator.engine.hold_model() as model:
            if task not in self._canvases:
                self._canvases[task] = _Canvas(model, self.settings)
            frames = self._canvases[task].draw(simulator.engine, model, physics, cameras)
        if frames.reshape(len(cameras), -1).std(axis=1).min() < 1.0:
            raise RenderError(f"Blank frames from {', '.join(cameras)} (MUJOCO_GL={os.environ.get('MUJOCO_GL')}).")
        return frames


@functools.cache
def get_renderer(settings: RenderSettings) -> Renderer:
    """Return the renderer of this process for the given settings."""
    return Renderer(settings)


@dataclass(frozen=True)
class Gl:
    """A working OpenGL library.

    Attributes:
        backend: MuJoCo's name of the library: egl or osmesa.
        renderer: The library's ``GL_RENDERER``: a GPU, or llvmpipe for software.
        environment: Environment variables that select the library; they must be set before MuJoCo is imported.
    """

    backend: str
    renderer: str
    environment: dict[str, str]

    def __str__(self) -> str:
        return f"{self.backend} on {self.renderer}"


_PROBE = """
import ctypes, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a hanging process ends with its parent
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
    """Render in ``num`` processes at once; return the library's ``GL_RENDERER``, or None if one fails or hangs."""
    probes = []
    for _ in range(num):
        probe = subprocess.Popen(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, **environment},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        probes.append(probe)
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
    """Find an OpenGL library that works in ``num_processes`` processes at once: a GPU's, else Mesa's, else OSMesa.

    If ``MUJOCO_GL`` is set, only that library is tested. On some GPUs one renderer works but several at once hang, so a
    GPU is tested with one process and then with all; software is tested only once.

    Raises:
        RenderError: No library works; the message contains the packages to install.
    """
    forced = os.environ.get("MUJOCO_GL")
    choices: list[dict[str, str]] = [{"MUJOCO_GL": forced or "egl", "PYOPENGL_PLATFORM": forced or "egl"}]
    if not forced:
        if _MESA_VENDOR.exists():
            choices.append({**choices[0], "__EGL_VENDOR_LIBRARY_FILENAMES": str(_MESA_VENDOR)})
        choices.append({"MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "osmesa"})
    for environment in choices:
        renderer = _probe(environment)
        if renderer is None:
            continue
        if renderer.startswith(_SOFTWARE):
            # There is one renderer per processor: additional threads would only compete.
            return Gl(environment["MUJOCO_GL"], renderer, {**environment, "LP_NUM_THREADS": "1"})
        if num_processes == 1 or _probe(environment, num_processes) is not None:
            return Gl(environment["MUJOCO_GL"], renderer, environment)
    raise RenderError(INSTALL_HINT)


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Images of an episode.

    Attributes:
        images: uint8 (T, C, H, W, 3), by step and camera.
        renderer: ``GL_RENDERER`` of the library that rendered them.
    """

    images: np.ndarray
    renderer: str


_get_simulator = cache_per_thread(Simulator, None)
"""Return this thread's simulator of a task for rendering recorded episodes."""


def render_episode(
    settings: RenderSettings, cameras: Sequence[str], init_state: InitialState, physics: np.ndarray
) -> Frames:
    """Render T recorded physics states, float64 (T, P), of an episode from ``init_state``.

    The environment of the process must select an OpenGL library; see :func:`find_gl`.
    """
    from OpenGL import GL

    simulator, renderer = _get_simulator(init_state.task), get_renderer(settings)
    simulator.reset(init_state)  # the reset also moves bodies of the model, which the physics state does not contain
    images = np.stack([renderer.draw(simulator, row, cameras) for row in physics])
    with _opengl():
        return Frames(images=images, renderer=GL.glGetString(GL.GL_RENDERER).decode())


if __name__ == "__main__":
    print(find_gl())

"""Looks: how images are drawn, so that a policy trained on someone else's images sees what it learned from.

``fast`` and ``closeup`` are ours. ``metaworld`` equals ``render()`` of Meta-World's own environment pixel by pixel,
``lerobot`` the images of LeRobot's Meta-World environment, at the same size on the same OpenGL library. Everything that
differs between them is in :data:`LOOKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from act_kit.errors import RenderError, did_you_mean

_UPSIDE_DOWN = frozenset({"corner", "corner2", "corner3", "corner4"})
"""Cameras of Meta-World's model that are upside down."""

_WORKSPACE = {
    "topview": (0.17, 0.0, 0.76),
    "corner": (0.19, 0.22, 0.64),
    "corner2": (0.33, 0.33, 0.42),
    "corner3": (0.24, 0.03, 0.68),
    "corner4": (0.26, 0.21, 0.72),
}
"""Parts of the images of fixed cameras in which objects and goals of all tasks are, in their initial states."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One way to draw a scene.

    Attributes:
        cameras: Cameras, unless others are chosen.
        size_px: Height and width, unless others are chosen.
        as_metaworld: True to draw what Meta-World draws: shadows, reflections and multisampling and, after a reset, the
            positions that its reset left, which are outdated in some tasks. In software, that takes ten times as long.
        rotated: Cameras whose frames are rotated by 180 degrees after rendering.
        positions_m: Positions of cameras (3,), meters, which replace those of the model.
        parts: Parts of the images of cameras that are drawn, at the full size: left edge, top edge and side, as
            fractions of the whole image.
    """

    cameras: tuple[str, ...]
    size_px: int
    as_metaworld: bool
    rotated: frozenset[str]
    positions_m: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    parts: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)


LOOKS: dict[str, Look] = {
    "fast": Look(cameras=("corner4",), size_px=128, as_metaworld=False, rotated=_UPSIDE_DOWN),
    "closeup": Look(
        cameras=("corner", "corner2"), size_px=64, as_metaworld=False, rotated=_UPSIDE_DOWN, parts=_WORKSPACE
    ),
    # metaworld/sawyer_xyz_env.py of metaworld 3.1.1, which renders with gymnasium/envs/mujoco/mujoco_rendering.py.
    "metaworld": Look(cameras=("corner2",), size_px=480, as_metaworld=True, rotated=frozenset()),
    # huggingface/lerobot, src/lerobot/envs/metaworld.py, commit 973b2f2: it moves corner2 and flips both axes of its
    # images, and changes no other camera.
    "lerobot": Look(
        cameras=("corner2",),
        size_px=480,
        as_metaworld=True,
        rotated=frozenset({"corner2"}),
        positions_m={"corner2": (0.75, 0.075, 0.7)},
    ),
}
"""Looks by name, as in ``act render --look``."""


def find_look(name: str) -> Look:
    """Return a look by its name, or raise :class:`RenderError`."""
    if name not in LOOKS:
        raise RenderError(f"'{name}' is not a look; choose from: {', '.join(LOOKS)}.{did_you_mean(name, LOOKS)}")
    return LOOKS[name]

"""Sources of Meta-World's observation: the body, geom or site of each object of each task, as a table.

Meta-World looks these up by name several times per step, in methods of its 50 environments. Here they are looked up
once, copied from MuJoCo after every step, and combined for many steps at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np

from act_kit.sim.distance import PROBES, norms


@dataclass(frozen=True, kw_only=True)
class ObjectPose:
    """Sources of the position and the quaternion of an object of a task.

    Attributes:
        at: Source of the position: ``body NAME``, ``geom NAME`` or ``site NAME``.
        turn: Source of the quaternion: ``quat NAME``, MuJoCo's quaternion of a body (w first); ``body NAME``,
            ``geom NAME`` or ``site NAME``, converted from a rotation matrix as in SciPy (w last); or "" for zeros.
        offset: Offset of the position, meters.
        knob: Name of a joint, if the object is a mark 0.05 m from ``at`` that rotates with the joint (dial-turn).
    """

    at: str
    turn: str = ""
    offset: tuple[float, float, float] | None = None
    knob: str = ""


_BUTTON = ObjectPose(at="body button", turn="quat button", offset=(0.0, -0.193, 0.0))
_TOPDOWN = ObjectPose(at="body button", turn="quat button", offset=(0.0, 0.0, 0.193))
_MUG = ObjectPose(at="body obj", turn="geom mug")
_DOOR = ObjectPose(at="geom handle", turn="geom handle")
_CUBE = ObjectPose(at="body obj", turn="quat obj")
_CUBE_BY_GEOM = ObjectPose(at="body obj", turn="geom objGeom")
_CUBE_GEOM = ObjectPose(at="geom objGeom", turn="geom objGeom")
_PLATE = ObjectPose(at="geom puck", turn="geom puck")
_STICK = ObjectPose(at="body stick", turn="body stick")
_NUT = ObjectPose(at="site RoundNut-8", turn="quat RoundNut")

OBJECT_POSES: dict[str, tuple[ObjectPose, ...]] = {
    "assembly-v3": (_NUT,),
    "basketball-v3": (ObjectPose(at="body bsktball", turn="quat bsktball"),),
    "bin-picking-v3": (_CUBE,),
    "box-close-v3": (ObjectPose(at="body top_link", turn="quat top_link"),),
    "button-press-topdown-v3": (_TOPDOWN,),
    "button-press-topdown-wall-v3": (_TOPDOWN,),
    "button-press-v3": (_BUTTON,),
    "button-press-wall-v3": (_BUTTON,),
    "coffee-button-v3": (ObjectPose(at="site buttonStart", turn="quat world"),),
    "coffee-pull-v3": (_MUG,),
    "coffee-push-v3": (_MUG,),
    "dial-turn-v3": (ObjectPose(at="body dial", turn="quat dial", knob="knob_Joint_1"),),
    "disassemble-v3": (_NUT,),
    "door-close-v3": (_DOOR,),
    "door-lock-v3": (ObjectPose(at="site lockStartLock", turn="quat door_link"),),
    "door-open-v3": (_DOOR,),
    "door-unlock-v3": (ObjectPose(at="site lockStartUnlock", turn="quat door_link"),),
    "drawer-close-v3": (ObjectPose(at="body drawer_link", offset=(0.0, -0.16, 0.05)),),
    "drawer-open-v3": (ObjectPose(at="body drawer_link", turn="quat drawer_link", offset=(0.0, -0.16, 0.0)),),
    "faucet-close-v3": (ObjectPose(at="site handleStartClose", turn="quat faucetBase", offset=(0.0, 0.0, -0.01)),),
    "faucet-open-v3": (ObjectPose(at="site handleStartOpen", turn="quat faucetBase", offset=(0.0, 0.0, -0.01)),),
    "hammer-v3": (
        ObjectPose(at="body hammer", turn="quat hammer"),
        ObjectPose(at="body nail_link", turn="quat nail_link"),
    ),
    "hand-insert-v3": (_CUBE,),
    "handle-press-side-v3": (ObjectPose(at="site handleStart"),),
    "handle-press-v3": (ObjectPose(at="site handleStart"),),
    "handle-pull-side-v3": (ObjectPose(at="site handleCenter"),),
    "handle-pull-v3": (ObjectPose(at="site handleRight"),),
    "lever-pull-v3": (ObjectPose(at="site leverStart", turn="geom objGeom"),),
    "peg-insert-side-v3": (ObjectPose(at="site pegGrasp", turn="site pegGrasp"),),
    "peg-unplug-side-v3": (ObjectPose(at="site pegEnd", turn="quat plug1"),),
    "pick-out-of-hole-v3": (_CUBE,),
    "pick-place-v3": (_CUBE_BY_GEOM,),
    "pick-place-wall-v3": (_CUBE_GEOM,),
    "plate-slide-back-side-v3": (_PLATE,),
    "plate-slide-back-v3": (_PLATE,),
    "plate-slide-side-v3": (_PLATE,),
    "plate-slide-v3": (_PLATE,),
    "push-back-v3": (_CUBE_GEOM,),
    "push-v3": (_CUBE_BY_GEOM,),
    "push-wall-v3": (_CUBE_GEOM,),
    "reach-v3": (_CUBE_BY_GEOM,),
    "reach-wall-v3": (_CUBE_BY_GEOM,),
    "shelf-place-v3": (_CUBE_BY_GEOM,),
    "soccer-v3": (ObjectPose(at="body soccer_ball", turn="body soccer_ball"),),
    "stick-pull-v3": (_STICK, ObjectPose(at="site insertion")),
    "stick-push-v3": (_STICK, ObjectPose(at="site insertion", offset=(0.0, 0.09, 0.0))),
    "sweep-into-v3": (_CUBE_BY_GEOM,),
    "sweep-v3": (_CUBE,),
    "window-close-v3": (ObjectPose(at="site handleCloseStart"),),
    "window-open-v3": (ObjectPose(at="site handleOpenStart"),),
}
"""Objects of each task, one or two, in the order of the observation."""

_POSITIONS = {"body": "xpos", "geom": "geom_xpos", "site": "site_xpos"}
_MATRICES = {"body": "xmat", "geom": "geom_xmat", "site": "site_xmat"}
_KINDS = {"body": mujoco.mjtObj.mjOBJ_BODY, "geom": mujoco.mjtObj.mjOBJ_GEOM, "site": mujoco.mjtObj.mjOBJ_SITE}

_GRASPING = frozenset({"stick-push-v3"})
"""Tasks whose success rule requires that both fingers press on the object."""


def quaternion(matrix: Sequence[float]) -> list[float]:
    """Return the quaternion (w last) of a rotation matrix, 9 numbers row by row.

    The algorithm and its order of operations are those of SciPy's ``Rotation.from_matrix(…).as_quat()``, which takes
    47 µs, half as long as the physics of an easy step. SciPy also orthogonalizes the matrix; MuJoCo's matrices are
    already orthogonal.
    """
    a, b, c, d, e, f, g, h, i = matrix
    trace = a + e + i
    if trace >= a and trace >= e and trace >= i:
        x, y, z, w = h - f, c - g, d - b, 1 + trace
    elif a >= e and a >= i:
        x, y, z, w = 1 - trace + 2 * a, d + b, g + c, h - f
    elif e >= i:
        y, z, x, w = 1 - trace + 2 * e, h + f, b + d, c - g
    else:
        z, x, y, w = 1 - trace + 2 * i, c + g, f + h, d - b
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    return [x / norm, y / norm, z / norm, w / norm]


class Recorder:
    """Recorder of the arrays of MjData that a task's observation needs, after each of T steps."""

    def __init__(self, fields: tuple[str, ...], data: mujoco.MjData) -> None:
        self._sources = {name: getattr(data, name) for name in fields}
        self.copies: dict[str, np.ndarray] = {}
        self._num = -1

    def begin(self, num: int) -> None:
        """Discard the previous values, and make room for ``num`` steps; the arrays are reused if they have the size."""
        if num != self._num:
            self._num = num
            self.copies = {name: np.empty((num, *source.shape)) for name, source in self._sources.items()}

    def take(self, t: int) -> None:
        """Copy the current values into row ``t``."""
        for name, copies in self.copies.items():
            copies[t] = self._sources[name]


class _Address(NamedTuple):
    """Arrays of MjData, and their rows, that hold an :class:`ObjectPose`."""

    field: str
    row: int
    offset: np.ndarray | None
    knob: int | None
    turn_field: str
    turn_row: int


class Observer:
    """Computes Meta-World's observation of a task and the inputs of its distance and success rule.

    Attributes:
        fields: Names of the arrays of MjData that are read.
    """

    def __init__(self, task: str, model: mujoco.MjModel) -> None:
        self._model = model
        self._hand = self._row("body", "hand")
        self._right, self._left = self._row("body", "rightclaw"), self._row("body", "leftclaw")
        self._objects = [self._look_up(pose) for pose in OBJECT_POSES[task]]
        self._probe, self._probe_rows = self._look_up_probe(PROBES.get(task, ""))
        self._fingers = [model.geom(name).id for name in ("leftpad_geom", "rightpad_geom")]
        self._held = model.geom("objGeom").id if task in _GRASPING else None
        fields = {"xpos", self._probe}
        for address in self._objects:
            fields |= {address.field, address.turn_field}
            if address.knob is not None:
                fields.add("qpos")
        self.fields = tuple(sorted(fields - {""}))

    def _row(self, kind: str, name: str) -> int:
        row: int = mujoco.mj_name2id(self._model, _KINDS[kind], name)
        assert row >= 0, f"{kind} {name}"
        return row

    def _look_up(self, pose: ObjectPose) -> _Address:
        kind, name = pose.at.split()
        turn_kind, _, turn_name = pose.turn.partition(" ")
        is_body = turn_kind in ("quat", "body")
        return _Address(
            field=_POSITIONS[kind],
            row=self._row(kind, name),
            offset=None if pose.offset is None else np.array(pose.offset),
            knob=int(self._model.joint(pose.knob).qposadr[0]) if pose.knob else None,
            turn_field={"": "", "quat": "xquat", **_MATRICES}[turn_kind],
            turn_row=self._row("body" if is_body else turn_kind, turn_name) if pose.turn else -1,
        )

    def _look_up_probe(self, probe: str) -> tuple[str, list[int]]:
        kind, _, name = probe.partition(" ")
        match kind:
            case "joint":
                return "qpos", [int(self._model.joint(name).qposadr[0])]
            case "site":
                return "site_xpos", [self._row("site", name)]
            case "fingers":
                return "site_xpos", [self._row("site", f"{side}EndEffector") for side in ("right", "left")]
            case _:
                return "", []

    def observe(self, copies: dict[str, np.ndarray]) -> np.ndarray:
        """Return hand, gripper opening and objects of T steps, float64 (T, 18): the first 18 numbers of a state."""
        xpos = copies["xpos"]
        current = np.zeros((len(xpos), 18))
        current[:, :3] = xpos[:, self._hand]
        current[:, 3] = np.minimum(norms(xpos[:, self._right] - xpos[:, self._left]) / 0.1, 1.0)
        for column, address in zip((4, 11), self._objects, strict=False):
            position = copies[address.field][:, address.row]
            if address.offset is not None:
                position = position + address.offset
            if address.knob is not None:
                angle = copies["qpos"][:, address.knob]
                position = position + 0.05 * np.stack([np.sin(angle), -np.cos(angle), np.zeros_like(angle)], axis=1)
            current[:, column : column + 3] = position
            if address.turn_field == "xquat":
                current[:, column + 3 : column + 7] = copies["xquat"][:, address.turn_row]
            elif address.turn_field:
                matrices = copies[address.turn_field][:, address.turn_row].tolist()
                current[:, column + 3 : column + 7] = [quaternion(matrix) for matrix in matrices]
        return current

    def probe(self, copies: dict[str, np.ndarray]) -> np.ndarray:
        """Return the task's probe, float64 (T, K); see :class:`~act_kit.sim.distance.Measurements`."""
        if not self._probe:
            return np.empty((len(copies["xpos"]), 0))
        source = copies[self._probe]
        if self._probe == "qpos":
            return source[:, self._probe_rows]
        if len(self._probe_rows) == 1:
            return source[:, self._probe_rows[0]]
        right, left = self._probe_rows
        return np.asarray((source[:, right] + source[:, left]) / 2.0)

    @property
    def needs_grasp(self) -> bool:
        """True if the task's success depends on :meth:`grasped`."""
        return self._held is not None

    def grasped(self, data: mujoco.MjData) -> bool:
        """Return True if both fingers press on the object of the task."""
        assert self._held is not None
        return self.touching(data, self._held)

    def touching(self, data: mujoco.MjData, geom: int) -> bool:
        """Return True if both fingers press on a geom (Meta-World's ``touching_object``)."""
        pairs = data.contact.geom
        with_geom = (pairs == geom).any(axis=1)
        for finger in self._fingers:
            touching = with_geom & (pairs == finger).any(axis=1)
            if sum(data.efc_force[data.contact.efc_address[touching]].tolist()) <= 0:
                return False
        return True

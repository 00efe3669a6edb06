"""Meta-World's scripted experts, with actions clipped to the range that the environment executes."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np

from act_kit.sim.engine import clip_actions

_warnings_lock = threading.Lock()
"""Lock for the warning filters, which are global to the process and must be restored in reverse order."""


class ScriptedExpert:
    """The scripted policy of one task; it is stateless and requires a visible goal."""

    def __init__(self, task: str) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policies: dict[str, Any] = ENV_POLICY_MAP
        self._policy = policies[task]()

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action, float32 (4,) in [-1, 1], for a state, float64 (39,)."""
        with _warnings_lock, warnings.catch_warnings():
            # At nearly every step: "Constant(s) may be too high. Environments clip response to [-1, 1]"
            warnings.simplefilter("ignore")
            # A copy, because the experts of the door tasks modify the door's position in their input array.
            action = self._policy.get_action(state.copy())
        # Unclipped actions reach 25; a policy trained on them would spend capacity on values that are never executed.
        return clip_actions(np.asarray(action, dtype=np.float32))

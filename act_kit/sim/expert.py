"""Meta-World's scripted experts, emitting only what the environment carries out."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np

_silence = threading.Lock()
"""What is done to warnings is done to all of the process's, and undone in the order of a stack."""


class ScriptedExpert:
    """The scripted policy of one task: stateless, needs the goal visible."""

    def __init__(self, task: str) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policies: dict[str, Any] = ENV_POLICY_MAP
        self._policy = policies[task]()

    def act(self, state: np.ndarray) -> np.ndarray:
        """Return the action, float32 (4,) in [-1, 1], for a state, float64 (39,)."""
        with _silence, warnings.catch_warnings():
            # At nearly every step: "Constant(s) may be too high. Environments clip response to [-1, 1]"
            warnings.simplefilter("ignore")
            # A copy, because those of the door tasks move the door in the very array they are shown.
            action = self._policy.get_action(state.copy())
        # Unclipped they reach 25; a policy trained on those would spend its capacity on what nobody carries out.
        return np.clip(np.asarray(action, dtype=np.float32), -1.0, 1.0)

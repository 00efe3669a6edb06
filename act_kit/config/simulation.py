"""Options of simulation and rollouts, which every verb shares."""

from __future__ import annotations

import dataclasses

from act_kit.options import Options, option

ENGINES = ("fast", "reference")
"""Simulation engines; see :mod:`act_kit.sim.simulator`."""

LOOKS = ("fast", "closeup", "metaworld", "lerobot")
"""Looks of images; see :mod:`act_kit.sim.looks`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimConfig(Options, group="sim"):
    """Simulation.

    Attributes:
        engine: fast, or reference (Meta-World's own code, several times slower). Both give the same numbers.
    """

    engine: str = option("fast", choices=ENGINES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(Options, group="rollout"):
    """Parallel rollouts of a policy; the results do not depend on it.

    Attributes:
        num_envs: Number of environments that run at the same time; 0 = automatic.
    """

    num_envs: int = option(0, min=0)

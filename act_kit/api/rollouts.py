"""What training and evaluation share of their rollouts: the renderer, and the message on how they are distributed."""

from __future__ import annotations

from collections.abc import Callable

from act_kit.api.progress import log
from act_kit.rollouts.rollout import RolloutPlan
from act_kit.sim.render import Gl, find_gl


def find_renderer(training_renderer: str, num_workers: int) -> Gl:
    """Find the OpenGL library that renders for a policy; warn if its training images have another renderer."""
    gl = find_gl(num_workers)
    if gl.renderer != training_renderer:
        log.warning(
            f"The training images were rendered by '{training_renderer}', this machine renders with '{gl.renderer}': "
            "the images differ slightly, and the success rate may differ too."
        )
    return gl


def log_first_plan() -> Callable[[RolloutPlan], None]:
    """Return a function that logs how the first of several rollouts is distributed over processes."""
    reasons: list[str] = []

    def log_first(plan: RolloutPlan) -> None:
        if not reasons:
            log.info(plan.reason)
        reasons.append(plan.reason)

    return log_first

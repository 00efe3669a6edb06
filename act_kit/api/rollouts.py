"""What training, fine-tuning and evaluation share of their rollouts: where they run, and how they are rendered."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from act_kit.api.progress import log
from act_kit.config.simulation import RolloutConfig, SimConfig
from act_kit.eval.evaluate import ActionFunction, as_agent
from act_kit.parallel import ExecutorConfig
from act_kit.policies.policy import Policy
from act_kit.rollouts.agents import Agent
from act_kit.rollouts.rollout import RolloutFunction, RolloutPlan, RolloutPool, make_rollout_function
from act_kit.sim.render import Gl, find_gl


class HasRollouts(Protocol):
    """Options with rollouts."""

    @property
    def sim(self) -> SimConfig:
        """Simulation."""
        ...

    @property
    def rollout(self) -> RolloutConfig:
        """Parallel rollouts."""
        ...


@contextmanager
def rollout_function(
    agent: Policy | Agent | ActionFunction, executor_config: ExecutorConfig, config: HasRollouts
) -> Generator[RolloutFunction]:
    """Yield a function that runs rollouts in local processes, whose plan is logged, or on a cluster.

    It is for agents with the views of ``agent``.
    """
    engine, num_workers, gl = config.sim.engine, executor_config.num_workers, None
    if as_agent(agent).views:
        gl = find_renderer(agent.metadata.gl_renderer, num_workers) if isinstance(agent, Policy) else find_gl()
    if executor_config.executor != "local":
        with executor_config.make_executor(gl.environment if gl else None) as executor:
            yield make_rollout_function(executor, engine)
    else:
        num_envs = config.rollout.num_envs
        with RolloutPool(num_workers, engine=engine, num_envs=num_envs, on_plan=log_first_plan()) as roll:
            yield roll


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

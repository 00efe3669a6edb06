"""Options of ``act finetune``."""

from __future__ import annotations

import dataclasses

from act_kit.config.simulation import RolloutConfig, SimConfig
from act_kit.options import Options, option, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(Options, group="ppo"):
    """Proximal policy optimization with chunks as decisions.

    Attributes:
        gamma: Discount of a step.
        lam: Weight of the advantage estimates over more chunks.
        sigma: Initial standard deviation of the noise on the actions, in action units; 0 = the largest of 0.05, 0.1,
            0.2, 0.3 with which the base succeeds nearly as often as without.
        sigma_min: Smallest standard deviation that is learned.
        sigma_max: Largest standard deviation that is learned.
        lr: Learning rate of the actor and the noise; by default 3e-4 of a correction, 3e-6 of a whole policy.
        critic_lr: Learning rate of the critic.
        epochs: Passes over the decisions of an iteration.
        minibatch: Decisions per gradient step.
        clip: Largest change of the likelihood ratio that is rewarded.
        target_divergence: Kullback-Leibler divergence from the policy of the rollouts at which the steps of an
            iteration end.
        base_weight: Weight of the divergence from the base policy in the loss.
        grad_clip: Largest norm of the gradients.
        reward: Reward of a success. Values are in its units, so without clipping by an absolute range it changes
            nothing.
        return_scaling: Also divide returns by their running standard deviation; their mean is never shifted.
        value_clip: none, absolute (by ``value_clip_range``, in units of reward 1) or relative (to the old value).
        value_clip_range: Largest change of a value that is learned in an iteration, with ``value_clip``.
    """

    gamma: float = option(0.999, above=0, max=1)
    lam: float = option(0.95, min=0, max=1)
    sigma: float = option(0.0, min=0, max=1)
    sigma_min: float = option(0.01, above=0, max=1)
    sigma_max: float = option(0.5, above=0, max=1)
    lr: float | None = option(None, above=0)
    critic_lr: float = option(1e-3, above=0)
    epochs: int = option(5, min=1)
    minibatch: int = option(800, min=2)
    clip: float = option(0.1, above=0, below=1)
    target_divergence: float = option(0.02, above=0)
    base_weight: float = option(0.0, min=0)
    grad_clip: float = option(1.0, above=0)
    reward: float = option(1.0, above=0)
    return_scaling: bool = False
    value_clip: str = option("none", choices=("none", "absolute", "relative"))
    value_clip_range: float = option(0.2, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.sigma or self.sigma_min <= self.sigma <= self.sigma_max,
            f"ppo.sigma={self.sigma:g}: expected ppo.sigma_min={self.sigma_min:g} to ppo.sigma_max={self.sigma_max:g}, "
            "within which the noise is learned.",
        )

    @property
    def initial_sigma(self) -> float:
        """Standard deviation to begin with, also before it was measured."""
        return self.sigma or 0.1


_LEARNING_RATES = {"correction": 3e-4, "policy": 3e-6}
"""Learning rates of what is trained, unless ``ppo.lr`` is given."""

_FINETUNE_MINUTES = 10.0
"""Default of :attr:`FinetuneConfig.minutes` without a number of steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Options of fine-tuning.

    Attributes:
        minutes: Minutes of fine-tuning, in all of its parts if resumed. By default 10; no limit if ``steps`` is given.
        steps: Simulated steps; 0 = as many as ``minutes`` allow.
        seed: Seed of the noise, the initial states and the critic.
        horizon: Steps after which an episode of an iteration ends; 0 = twice the number within which 90 % of the
            base's successes come, of the slowest task. The evaluations always have the benchmark's 500 steps.
        episodes: Episodes of an iteration; 0 = as many as have about 12,800 steps at the success rate of the base.
        failed_fraction: Fraction of an iteration's initial states that failed in the iterations before; the others are
            new.
        core_fraction: Curriculum: the first iteration draws its new initial states from this fraction of all, those
            nearest to the center of the demonstrated ones; 1 = from all.
        widen_iterations: Iterations after which new initial states are drawn from all; until then, the fraction grows
            evenly.
        failing_tasks: Fraction of the new initial states that the tasks of a policy of several get in proportion to
            their failure rates; the others are of all tasks alike.
        trains: What is trained: a ``correction`` of the frozen policy's actions, or the whole ``policy``.
        scale: Largest correction of a number of an action; 0 = twice ``ppo.sigma``.
        width: Width of the hidden layers of the correction.
        warmup_variance: Fraction of the returns' variance that the critic explains before the policy is changed.
        select_every: Iterations between two evaluations from the selection initial states.
        select_episodes: Episodes of such an evaluation, per task.
        patience: Number of evaluations in turn without a better one after which fine-tuning ends.
        ppo: Optimization.
        sim: Simulation.
        rollout: Parallel rollouts of a policy; the results do not depend on it.
        wandb_project: Weights & Biases project that also gets the records of ``metrics.jsonl``; "" = none.
    """

    minutes: float | None = option(None, above=0, flag="--minutes")
    steps: int = option(0, min=0, flag="--steps")
    seed: int = option(0, min=0, flag="--seed")
    horizon: int = option(0, min=0, max=500)
    episodes: int = option(0, min=0)
    failed_fraction: float = option(0.0, min=0, below=1)
    core_fraction: float = option(1.0, min=0.01, max=1)
    widen_iterations: int = option(20, min=1)
    failing_tasks: float = option(0.0, min=0, max=1)
    trains: str = option("correction", choices=("correction", "policy"))
    scale: float = option(0.0, min=0, max=2)
    width: int = option(256, min=1, max=8192)
    warmup_variance: float = option(0.5, min=0, below=1)
    select_every: int = option(15, min=1)
    select_episodes: int = option(100, min=1)
    patience: int = option(6, min=1)
    ppo: PPOConfig = PPOConfig()
    sim: SimConfig = SimConfig()
    rollout: RolloutConfig = RolloutConfig()
    wandb_project: str = ""

    @property
    def largest_correction(self) -> float:
        """Largest correction of a number of an action."""
        return self.scale or 2 * self.ppo.initial_sigma

    @property
    def learning_rate(self) -> float:
        """Learning rate of the actor and the noise."""
        return _LEARNING_RATES[self.trains] if self.ppo.lr is None else self.ppo.lr

    @property
    def budget_minutes(self) -> float:
        """Minutes of the budget; 0 for no limit."""
        if self.minutes is None:
            return 0.0 if self.steps else _FINETUNE_MINUTES
        return self.minutes

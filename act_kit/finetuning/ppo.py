"""Proximal policy optimization of an actor (Schulman et al. 2017, arXiv:1707.06347), with chunks as decisions.

The readable reference is CleanRL's single-file implementation. What differs: a decision is a chunk, whose likelihood
counts its executed actions; episodes are whole, so no value is bootstrapped at the end of a rollout; the policy and the
value share nothing; the critic predicts returns in units of the reward of a success, so they lie in [0, 1].

Shapes: Q decisions, E executed actions of a chunk, A action, F features, I inputs of an actor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from act_kit.config.finetuning import PPOConfig
from act_kit.finetuning.actors import Actor
from act_kit.finetuning.advantages import estimate_advantages
from act_kit.finetuning.exploration import Experience
from act_kit.sim.tasks import ACTION_DIM


class Critic(nn.Module):
    """Value of a state: the expected discounted success, given the features and the time left."""

    def __init__(self, num_features: int, width: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(num_features + 1, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.LayerNorm(width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )

    def forward(self, features_QF: Tensor, time_left_Q: Tensor) -> Tensor:
        """Return the values (Q,)."""
        values: Tensor = self.net(torch.cat([features_QF, time_left_Q[:, None]], dim=1)).squeeze(1)
        return values


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What an update fits, each (Q,).

    Attributes:
        advantages: Advantages, in units of a success.
        returns: Returns in the units of the critic: those of a success, divided by ``PPO.return_scale``.
        log_likelihoods: Log likelihoods of the decisions before the update.
        values: Outputs of the critic before the update.
        true_values: The values that they meant, in units of a success.
    """

    advantages: Tensor
    returns: Tensor
    log_likelihoods: Tensor
    values: Tensor
    true_values: Tensor


class PPO:
    """The actor, its noise, the critic and their optimizers.

    Attributes:
        actor: What is trained.
        log_sigma: Logarithm of the standard deviation of the noise (A,).
        critic: Value function.
        return_scale: Standard deviation of the returns so far, with ``return_scaling``; else 1.
    """

    def __init__(self, config: PPOConfig, actor: Actor, *, lr: float, seed: int) -> None:
        self.config = config
        self.actor = actor
        device = actor.policy.device
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.critic = Critic(actor.num_features).to(device)
        self.log_sigma = nn.Parameter(torch.full((ACTION_DIM,), math.log(config.initial_sigma), device=device))
        self._trained = [*(parameter for _, parameter in actor.named_parameters()), self.log_sigma]
        self.actor_optimizer = torch.optim.Adam(self._trained, lr=lr, eps=1e-5)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_lr, eps=1e-5)
        self.return_scale = 1.0
        self._seed = seed

    @property
    def sigma(self) -> Tensor:
        """Standard deviation of the noise (A,)."""
        return self.log_sigma.detach().exp()

    def log_likelihood(self, means_QEA: Tensor, actions_QEA: Tensor, num_executed_Q: Tensor) -> Tensor:
        """Return the log likelihood of the executed actions of each decision, before clipping, (Q,)."""
        z_QEA = (actions_QEA - means_QEA) / self.log_sigma.exp()
        each_QE = (-0.5 * z_QEA.square() - self.log_sigma - 0.5 * math.log(2 * math.pi)).sum(dim=2)
        return _sum_executed(each_QE, num_executed_Q)

    @torch.no_grad()
    def targets(self, experience: Experience) -> Targets:
        """Return what :meth:`update` fits to the experience."""
        inputs_QI = experience.inputs_QI
        values_Q = self.critic(self.actor.features(inputs_QI), experience.time_left_Q)
        advantages, returns = [], []
        begin = 0
        raw_values = values_Q.cpu().double().numpy() * self.return_scale
        for decisions in experience.decisions:
            end = begin + len(decisions.rewards)
            estimate = estimate_advantages(decisions, raw_values[begin:end], lam=self.config.lam)
            advantages.append(estimate[0])
            returns.append(estimate[1])
            begin = end
        if self.config.return_scaling:
            scale = max(1e-3, float(np.concatenate(returns).std()))
            is_first = self.return_scale == 1.0
            self.return_scale = scale if is_first else 0.9 * self.return_scale + 0.1 * scale
        means_QEA = torch.cat([self.actor.means(rows) for rows in torch.split(inputs_QI, self.config.minibatch)])
        return Targets(
            advantages=torch.from_numpy(np.concatenate(advantages)).float(),
            returns=torch.from_numpy(np.concatenate(returns) / self.return_scale).float(),
            log_likelihoods=self.log_likelihood(means_QEA, experience.actions_QEA, experience.num_executed_Q),
            values=values_Q,
            true_values=torch.from_numpy(raw_values).float(),
        )

    def update(
        self, experience: Experience, targets: Targets, *, iteration: int, with_policy: bool
    ) -> dict[str, float]:
        """Take the gradient steps of one iteration; return the metrics. Without ``with_policy``, fit the critic alone.

        The policy's steps end with the first minibatch whose divergence exceeds ``target_divergence``. It takes none on
        a single decision, which is left over now and then: one advantage has no standard deviation.
        """
        config = self.config
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + iteration)
        sums: dict[str, list[float]] = defaultdict(list)
        num, is_open = len(targets.returns), with_policy
        for _ in range(config.epochs):
            for rows in torch.randperm(num, generator=generator).split(config.minibatch):  # type: ignore[no-untyped-call]
                if is_open and len(rows) > 1:
                    is_open = self._step_policy(experience, targets, rows, sums)
                self._step_critic(experience, targets, rows, sums)
        metrics = {f"finetune/{name}": float(np.mean(values)) for name, values in sums.items()}
        if with_policy:
            with torch.no_grad():
                blocks = torch.split(torch.arange(num), config.minibatch)
                parts = [self._moved(experience, targets, rows) for rows in blocks]
            metrics["finetune/divergence"] = _divergence(torch.cat([log_ratio for log_ratio, _ in parts]))
            metrics["finetune/base_divergence"] = float(torch.cat([from_base for _, from_base in parts]).mean())
        true_returns = targets.returns * self.return_scale
        metrics["finetune/explained_variance"] = explained_variance(targets.true_values, true_returns)
        metrics["finetune/value_low"] = float(targets.true_values.min())
        metrics["finetune/value_high"] = float(targets.true_values.max())
        metrics["finetune/sigma"] = float(self.sigma.mean())
        metrics["finetune/policy_steps"] = float(len(sums["policy_loss"]))
        return metrics

    def _step_policy(
        self, experience: Experience, targets: Targets, rows: Tensor, sums: dict[str, list[float]]
    ) -> bool:
        """Take one step of the policy; return False if it has moved too far, and take none."""
        config = self.config
        log_ratio, from_base = self._moved(experience, targets, rows)
        ratio = log_ratio.exp()
        if _divergence(log_ratio) > config.target_divergence:
            return False
        advantages = targets.advantages[rows]
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
        loss = config.base_weight * from_base.mean() - torch.minimum(ratio * advantages, clipped * advantages).mean()
        sums["policy_loss"].append(float(loss.detach()))
        sums["clip_fraction"].append(float(((ratio - 1).abs() > config.clip).float().mean()))
        self.actor_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._trained, config.grad_clip)
        sums["policy_grad_norm"].append(float(norm))
        self.actor_optimizer.step()
        with torch.no_grad():
            self.log_sigma.clamp_(math.log(config.sigma_min), math.log(config.sigma_max))
        return True

    def _moved(self, experience: Experience, targets: Targets, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far decisions are from those of the rollouts and from those of the base policy, each (Q,).

        The first is the logarithm of how much likelier they are now than in the rollouts, the second the
        Kullback-Leibler divergence of the executed actions from the base policy's, nats.
        """
        inputs_QI, num_executed_Q = experience.inputs_QI[rows], experience.num_executed_Q[rows]
        means_QEA = self.actor.means(inputs_QI)
        likelihood_Q = self.log_likelihood(means_QEA, experience.actions_QEA[rows], num_executed_Q)
        z_QEA = (means_QEA - self.actor.base_means(inputs_QI)) / self.sigma
        from_base_Q = _sum_executed(0.5 * z_QEA.square().sum(dim=2), num_executed_Q)
        return likelihood_Q - targets.log_likelihoods[rows], from_base_Q

    def _step_critic(
        self, experience: Experience, targets: Targets, rows: Tensor, sums: dict[str, list[float]]
    ) -> None:
        values = self.critic(self.actor.features(experience.inputs_QI[rows]), experience.time_left_Q[rows])
        old, returns = targets.values[rows], targets.returns[rows]
        errors = (values - returns).square()
        if self.config.value_clip != "none":
            change = self.config.value_clip_range
            unit = self.config.reward * self.return_scale
            bound = change * old.abs() if self.config.value_clip == "relative" else torch.full_like(old, change / unit)
            clipped = old + (values - old).clamp(-bound, bound)
            errors = torch.maximum(errors, (clipped - returns).square())
        loss = errors.mean()
        sums["value_loss"].append(float(loss.detach()))
        self.critic_optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.critic.parameters(), self.config.grad_clip)
        sums["value_grad_norm"].append(float(norm))
        self.critic_optimizer.step()


def _sum_executed(each_QE: Tensor, num_executed_Q: Tensor) -> Tensor:
    """Return the sums over the executed actions, (Q,)."""
    is_executed_QE = torch.arange(each_QE.shape[1], device=each_QE.device) < num_executed_Q[:, None]
    return (each_QE * is_executed_QE).sum(dim=1)


def _divergence(log_ratio: Tensor) -> float:
    """Return the estimated Kullback-Leibler divergence, nats (Schulman 2020, joschu.net/blog/kl-approx.html)."""
    return float((log_ratio.exp() - 1 - log_ratio).mean().detach())


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return the fraction of the variance of returns that values explain; 0 if the returns do not vary."""
    variance = float(returns.var())
    return 1 - float((returns - values).var()) / variance if variance > 1e-12 else 0.0

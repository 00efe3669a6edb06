"""The loop of fine-tuning: rollouts with noise, updates, and the choice of the best checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from act_kit.config.finetuning import FinetuneConfig
from act_kit.errors import CheckpointError, TrainingError
from act_kit.finetuning.actors import fewest_episodes, make_actor
from act_kit.finetuning.curriculum import allot, choose_horizon, core_fraction, draw_from_core
from act_kit.finetuning.exploration import ExploringAgent, gather_experience
from act_kit.finetuning.ppo import PPO
from act_kit.metrics import MetricLogger
from act_kit.options import to_dict
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.policies.storage import read_self_test
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.recorder import EpisodeRules
from act_kit.rollouts.rollout import RolloutFunction
from act_kit.sim.initial_states import InitialState, sample_each
from act_kit.statistics import mcnemar, percent
from act_kit.training.checkpoint import Checkpoints, TrainingState, optimizer_tensors, restore_optimizer

STEPS_PER_ITERATION = 12_800
"""Simulated steps of an iteration, about."""

_NUM_FAILED = 500
"""Number of the last failed initial states that are drawn from again."""

_RATE_DECAY = 0.8
"""Weight of the earlier iterations in the failure rate of a task."""

_MAX_WARMUP = 10
"""Iterations after which the policy is changed even if the critic explains little: some returns cannot be explained."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Outcome of the evaluation that selects a checkpoint, paired with the base policy.

    Attributes:
        successes: Number of successful episodes.
        num: Number of episodes.
        won, lost: Number of episodes where only this policy, or only the base, succeeds.
    """

    successes: int
    num: int
    won: int
    lost: int

    def __str__(self) -> str:
        return (
            f"{self.successes}/{self.num} (base {self.successes - self.won + self.lost}; {self.won} won, {self.lost} "
            f"lost, p = {mcnemar(self.lost, self.won):.2g})"
        )


class Finetuner:
    """One fine-tuning run. Iteration i depends on the configuration, the base policy and the iterations before it.

    Attributes:
        policy: The fine-tuned policy.
        step: Number of simulated steps so far.
        iteration: Number of iterations so far.
        selection: Last evaluation from the selection initial states; None before the first.
    """

    def __init__(self, config: FinetuneConfig, base: Policy, run: Path, *, roll: RolloutFunction) -> None:
        self.config = config
        self.run = run
        actor = make_actor(base, config)
        self.policy = actor.policy
        self.ppo = PPO(config.ppo, actor, lr=config.learning_rate, seed=config.seed)
        self.step = self.iteration = 0
        self.selection: Selection | None = None
        self._base = base
        self._roll = roll
        self._checkpoints = Checkpoints(run)
        self._elapsed_s = self._iteration_s = 0.0
        self._horizon, self._num_episodes = config.horizon, config.episodes
        self._is_warm = False
        self._failed: list[InitialState] = []
        self._failure_rates = np.ones(len(base.tasks))
        self._noisy, self._num_decisions = 0.0, 0
        self._best_successes, self._best_step, self._num_worse = -1, 0, 0
        self._base_successes = np.zeros(0, dtype=bool)
        self._actor_names: dict[Tensor, str] = {parameter: name for name, parameter in actor.named_parameters()}
        self._actor_names[self.ppo.log_sigma] = "log_sigma"
        self._critic_names: dict[Tensor, str] = {
            parameter: f"critic.{name}" for name, parameter in self.ppo.critic.named_parameters()
        }

    # -- loop ------------------------------------------------------------------------------------------------------

    def finetune(self, on_iteration: Callable[[Finetuner], None] = lambda finetuner: None) -> Policy:
        """Fine-tune within the budget and return the best policy; ``on_iteration`` may raise KeyboardInterrupt."""
        is_new = not self._checkpoints.exist
        resume_step = -1 if is_new else self.step  # a run that was killed before its first checkpoint has a record of 0
        project = self.config.wandb_project
        logger = MetricLogger(self.run, resume_step=resume_step, wandb_project=project, config=to_dict(self.config))
        try:
            began = time.perf_counter() - self._elapsed_s
            if is_new:
                episodes = self._evaluate(self._base)
                self._base_successes = _successes(episodes)
                self._horizon = self._horizon or choose_horizon(episodes)
                self._num_episodes = self._num_episodes or self._choose_num_episodes(episodes)
                self._failure_rates = 1 - self._base_successes.reshape(len(self.policy.tasks), -1).mean(axis=1)
                self._select(logger, self._base_successes)  # the policy still acts as the base
                self._save()
            while not self.is_done:
                iteration_began = time.perf_counter()
                metrics = self._iterate()
                self._iteration_s = time.perf_counter() - iteration_began
                metrics["finetune/steps_per_s"] = self.step / max(1e-9, time.perf_counter() - began)
                self._check(metrics)
                logger.log(self.step, metrics)
                self._elapsed_s = time.perf_counter() - began
                if self.iteration % self.config.select_every == 0 or self.is_out_of_budget:
                    self._select(logger, _successes(self._evaluate(self.policy)))
                    self._elapsed_s = time.perf_counter() - began
                self._save()
                on_iteration(self)
        finally:
            logger.close()
        return Policy.load(self.run)

    @property
    def is_out_of_budget(self) -> bool:
        """True if the steps or the minutes are used up."""
        return self.progress >= 1

    @property
    def is_done(self) -> bool:
        """True if the budget is used up, or several evaluations in turn were not better."""
        return self.is_out_of_budget or self._num_worse >= self.config.patience

    def _iterate(self) -> dict[str, float]:
        """Roll out, update, and return the metrics of one iteration."""
        agent = ExploringAgent(self.ppo.actor, self.ppo.sigma, seeds=(self.config.seed, self.iteration))
        rules = EpisodeRules(horizon=self._horizon)
        episodes = self._roll(agent, self._draw(), rules=rules, stop_at_success=True)
        self._failed += [episode.init_state for episode in episodes if not episode.success_once]
        self._failed = self._failed[-_NUM_FAILED:]
        for index, task in enumerate(self.policy.tasks):
            of_task = [not episode.success_once for episode in episodes if episode.init_state.task == task]
            if of_task:
                rate = float(np.mean(of_task))
                self._failure_rates[index] = _RATE_DECAY * self._failure_rates[index] + (1 - _RATE_DECAY) * rate
        experience = gather_experience(episodes, gamma=self.config.ppo.gamma, horizon=self._horizon)
        targets = self.ppo.targets(experience)
        metrics = self.ppo.update(experience, targets, iteration=self.iteration, with_policy=self._is_warm)
        explained = metrics["finetune/explained_variance"]
        self.iteration += 1
        self._is_warm |= explained > self.config.warmup_variance or self.iteration >= _MAX_WARMUP
        self.step += experience.num_steps
        self._noisy, self._num_decisions = experience.num_succeeded / len(episodes), len(experience.num_executed_Q)
        metrics["finetune/success"] = self._noisy
        metrics["finetune/iteration"] = float(self.iteration)
        return metrics

    def _draw(self) -> list[InitialState]:
        """Return the initial states of an iteration: new ones by the curriculum, and some that failed before."""
        rng = np.random.default_rng([self.config.seed, self.iteration])
        num_again = min(len(self._failed), round(self.config.failed_fraction * self._num_episodes))
        states = [self._failed[index] for index in rng.permutation(len(self._failed))[:num_again]]
        tasks, fraction = self.policy.tasks, core_fraction(self.config, self.iteration)
        # A seed of its own for every iteration: the iterations do not draw what came before them again.
        seed = self.config.seed * 1_000_003 + self.iteration
        numbers = allot(self._num_episodes - num_again, self._failure_rates, self.config.failing_tasks)
        for task, num in zip(tasks, numbers, strict=True):
            demonstrated = self._base.metadata.init_states_of(task)
            states += draw_from_core(task, num, fraction, demonstrated, seed=seed)
        return sorted(states, key=lambda state: tasks.index(state.task))

    def _choose_num_episodes(self, episodes: Sequence[Episode]) -> int:
        """Return the number of episodes of an iteration, from the mean length of the base policy's."""
        mean_length = float(np.mean([min(len(episode), self._horizon) for episode in episodes]))
        return max(fewest_episodes(self._base, self.config), round(STEPS_PER_ITERATION / mean_length))

    # -- texts -----------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> float:
        """Used fraction of the budget, of that of the two that ends first."""
        steps, minutes = self.config.steps, self.config.budget_minutes
        by_steps = self.step / steps if steps else 0.0
        by_minutes = self._elapsed_s / (60 * minutes) if minutes else 0.0
        return min(1.0, max(by_steps, by_minutes))

    def plan(self) -> str:
        """Describe the size of an iteration and how many fit into the budget, measured on those so far."""
        steps, minutes = self.config.steps, self.config.budget_minutes
        by_steps = self.iteration * steps / self.step if steps else math.inf
        left_s = 60 * minutes - self._elapsed_s if minutes else math.inf
        num = math.ceil(min(by_steps, self.iteration + max(0.0, left_s) / self._iteration_s))
        num_minibatches = math.ceil(self._num_decisions / self.config.ppo.minibatch)
        return (
            f"{self._num_episodes} episodes of at most {self._horizon} steps and "
            f"{self.step / self.iteration:,.0f} steps an iteration, in {self._iteration_s:.1f} s: about {num} fit into "
            "the budget, fewer with the evaluations; at most "
            f"{self.config.ppo.epochs * num_minibatches} gradient steps each."
        )

    def status(self) -> str:
        """Return the text of the progress bar."""
        return f"{self.step:,} steps, noisy success {percent(self._noisy)} %, selection {self.selection or 'n/a'}"

    def result_text(self) -> str:
        """Describe why fine-tuning ended, and its result."""
        ended = f"Ended by the budget, after {self.step:,} steps in {self._elapsed_s / 60:.1f} minutes."
        if not self.is_out_of_budget:
            ended = (
                f"Ended before the budget, because {self._num_worse} evaluations in turn were not better (patience="
                f"{self.config.patience}; with --resume it may be larger)."
            )
        if not self._best_step:
            return (
                f"{ended} Nothing was better than the base policy ({self._best_successes} successes): it is the result."
            )
        return (
            f"{ended} The best checkpoint is from step {self._best_step:,}, with {self._best_successes} successes from "
            f"the selection initial states (base {int(self._base_successes.sum())}). It was selected on them: act eval "
            "measures it on other ones."
        )

    # -- selection -------------------------------------------------------------------------------------------------

    def _evaluate(self, policy: Policy) -> list[Episode]:
        """Roll a policy out from the selection initial states."""
        states = sample_each(policy.tasks, self.config.select_episodes, seed=self.config.seed, stream="select")
        return self._roll(PolicyAgent(policy), states, stop_at_success=True)

    def _select(self, logger: MetricLogger, successes: np.ndarray) -> None:
        """Record the policy's successes, bool (N,), and make it the best if it is better than the best so far."""
        self.selection = Selection(
            successes=int(successes.sum()),
            num=len(successes),
            won=int((successes & ~self._base_successes).sum()),
            lost=int((self._base_successes & ~successes).sum()),
        )
        logger.log(self.step, {"eval/success": float(successes.mean())})
        if self.selection.successes > self._best_successes:
            self._best_successes, self._best_step, self._num_worse = self.selection.successes, self.step, 0
        else:
            self._num_worse += 1

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self) -> None:
        optimizer = optimizer_tensors(self.ppo.actor_optimizer, self._actor_names)
        optimizer |= optimizer_tensors(self.ppo.critic_optimizer, self._critic_names)
        extra = {f"critic.{name}": tensor for name, tensor in self.ppo.critic.state_dict().items()}
        extra["log_sigma"] = self.ppo.log_sigma.detach()
        counters = [self.iteration, self._horizon, self._num_episodes, self._is_warm, self._num_worse]
        extra["counters"] = torch.tensor(counters, dtype=torch.int64)
        extra["return_scale"] = torch.tensor(self.ppo.return_scale, dtype=torch.float64)
        tasks = self.policy.tasks
        for index, task in enumerate(tasks):
            of_task = [state.array for state in self._failed if state.task == task]
            if of_task:
                extra[f"failed.{index}"] = torch.from_numpy(np.stack(of_task))
        order = [tasks.index(state.task) for state in self._failed]
        extra["failed_order"] = torch.tensor(order, dtype=torch.int64)
        extra["base_successes"] = torch.from_numpy(self._base_successes.astype(np.uint8))
        extra["failure_rates"] = torch.from_numpy(self._failure_rates.copy())
        extra["base"] = _as_tensor(self._base.weights_hash)
        extra["elapsed_s"] = torch.tensor(self._elapsed_s, dtype=torch.float64)
        state = TrainingState(
            step=self.step,
            best_successes=self._best_successes,
            best_step=self._best_step,
            optimizer=optimizer,
            weights={},
            # All of its noise has seeds of its own; the state of the process would differ from run to run.
            rng={"host": torch.Generator().manual_seed(0).get_state(), "device": torch.empty(0, dtype=torch.uint8)},
            extra=extra,
        )
        policy = self.policy
        saved = Policy(policy.model, policy.normalizer, replace(policy.metadata, step=self.step), policy.chunking)
        self._checkpoints.save(saved, state, self._self_test())

    def _self_test(self) -> dict[str, np.ndarray]:
        """Return the self-test batch of the base policy's checkpoint."""
        assert self._base.folder is not None
        self_test = read_self_test(self._base.folder)
        return {name: rows for name, rows in self_test.items() if name != "chunks"}

    def resume(self) -> None:
        """Continue from the last checkpoint; a run that was killed before its first checkpoint begins again.

        Raises:
            CheckpointError: The checkpoint is damaged, or the base policy is another one.
        """
        if not self._checkpoints.exist:
            return
        policy, state = self._checkpoints.load_last()
        if not torch.equal(state.extra.get("base", torch.empty(0)), _as_tensor(self._base.weights_hash)):
            raise CheckpointError(
                f"{self.run} was started with another policy than the one that is now at {self._base.folder}. Fix: "
                "give the one that it was started with, or choose another --out."
            )
        self.policy.model.load_state_dict(policy.model.state_dict())
        try:
            self._restore(state)
        except (KeyError, RuntimeError, ValueError, StopIteration) as error:
            raise CheckpointError(
                f"{self.run}: its last checkpoint is damaged: {error!r}. Fix: start again."
            ) from error

    def _restore(self, state: TrainingState) -> None:
        """Restore what :meth:`_save` keeps besides the policy."""
        ppo, extra = self.ppo, state.extra
        ppo.critic.load_state_dict(
            {name.removeprefix("critic."): tensor for name, tensor in extra.items() if name.startswith("critic.")}
        )
        with torch.no_grad():
            ppo.log_sigma.copy_(extra["log_sigma"])
        for optimizer, names in ((ppo.actor_optimizer, self._actor_names), (ppo.critic_optimizer, self._critic_names)):
            own = set(names.values())
            saved = {key: tensor for key, tensor in state.optimizer.items() if key.rpartition(".")[0] in own}
            if saved:  # there is none before the first step
                restore_optimizer(optimizer, names, saved)
        self.iteration, self._horizon, self._num_episodes, is_warm, self._num_worse = extra["counters"].tolist()
        self._is_warm, self._elapsed_s = bool(is_warm), float(extra["elapsed_s"])
        ppo.return_scale = float(extra["return_scale"])
        self._base_successes = extra["base_successes"].bool().numpy().copy()
        self._failure_rates = extra["failure_rates"].double().numpy().copy()
        tasks = self.policy.tasks
        rows = {index: iter(extra.get(f"failed.{index}", torch.empty(0))) for index in range(len(tasks))}
        self._failed = []
        for index in extra["failed_order"].tolist():
            self._failed.append(InitialState.of(tasks[index], next(rows[index]).numpy()))
        self.step, self._best_successes, self._best_step = state.step, state.best_successes, state.best_step

    def _check(self, metrics: dict[str, float]) -> None:
        """Raise :class:`TrainingError` if a number is not finite."""
        wrong = [name for name, value in metrics.items() if not np.isfinite(value)]
        if wrong:
            raise TrainingError(
                f"Fine-tuning diverged: {', '.join(wrong)} not finite in iteration {self.iteration}. The last "
                f"checkpoint is from before. Fix: a lower ppo.lr (now {self.config.learning_rate:g})."
            )


def _successes(episodes: Sequence[Episode]) -> np.ndarray:
    """Return which episodes succeeded, bool (N,)."""
    return np.array([episode.success_once for episode in episodes])


def _as_tensor(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)

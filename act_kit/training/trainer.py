"""Fitting ACT to demonstrations, with rollouts on the way that choose the best checkpoint."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from act_kit.config import TrainConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.windows import load_windows, split_episodes
from act_kit.errors import CheckpointError, TrainingError
from act_kit.files import require_space
from act_kit.policy.act import ACT, kl_divergence, masked_l1
from act_kit.policy.normaliser import Normaliser
from act_kit.policy.policy import Contract, Policy
from act_kit.sim.tasks import STATE_DIM
from act_kit.telemetry import MetricLogger
from act_kit.training.checkpoint import Checkpoints, TrainingState, optimizer_tensors, restore_optimizer
from act_kit.training.watchdog import Watchdog
from act_kit.versions import versions

_PROBE_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What selection rollouts measured of a policy.

    Attributes:
        successes: Of ``num`` episodes.
        low, high: Wilson 95 % interval of the success rate.
        final_distance: Mean over the episodes.
    """

    successes: int
    num: int
    low: float
    high: float
    final_distance: float


Selector = Callable[[Policy], Trial]
"""Rolls a policy out on the selection starts."""


def learning_rate(step: int, *, steps: int, peak: float, warmup: float) -> float:
    """Rise linearly for ``warmup`` of the steps, then fall to 0 along a cosine; ``step`` counts from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def rollout_steps(steps: int, rollouts: int) -> list[int]:
    """Spread rollouts over the second half of training, where policies begin to work, the last one at its end."""
    return sorted({round(steps * (0.5 + 0.5 * (i + 1) / rollouts)) for i in range(rollouts)})


class Trainer:
    """One training run. Everything it does follows from the configuration, the data and the step it is at."""

    def __init__(
        self, config: TrainConfig, store: EpisodeStore, run: Path, *, selector: Selector | None, device: str = "cpu"
    ) -> None:
        self.config = config
        self.store = store
        self.run = run
        self.selector = selector
        self.device = torch.device(device)
        train, val = split_episodes(store.num_episodes, config.trainer.val_fraction, config.trainer.seed)
        self.train_windows = load_windows(store, train, config.policy.chunk_size, self.device)
        self.val_windows = load_windows(store, val, config.policy.chunk_size, self.device)
        torch.manual_seed(config.trainer.seed)
        self.model = ACT(config.policy).to(self.device)
        self.normaliser = Normaliser(STATE_DIM).to(self.device)
        self.normaliser.fit(self.train_windows.states_TS)
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            list(self.names), lr=config.trainer.lr, weight_decay=config.trainer.weight_decay, fused=True
        )
        self.checkpoints = Checkpoints(run)
        self.step = 0
        self.best_successes = -1
        self.best_step = 0
        self.logger: MetricLogger | None = None
        # Weights and both moments of AdamW, for `last`, `best` and the one being written.
        num_bytes = 3 * 3 * 4 * sum(parameter.numel() for parameter in self.names)
        require_space(run, num_bytes, "The checkpoints of this run")

    def resume(self) -> None:
        """Go on from the run's last checkpoint, to the same bits on CPU as if it had never stopped.

        A run that was killed before its first checkpoint begins again.

        Raises:
            CheckpointError: It is damaged, or of another dataset.
        """
        if not self.checkpoints.exist:
            return
        policy, state = self.checkpoints.load_last()
        if policy.contract.dataset_fingerprint != self._contract().dataset_fingerprint:
            raise CheckpointError(f"{self.run} was trained on other data: {policy.contract.dataset_command}")
        self.model.load_state_dict(policy.model.state_dict())
        self.normaliser.load_state_dict(policy.normaliser.state_dict())
        restore_optimizer(self.optimizer, self.names, state.optimizer)
        torch.set_rng_state(state.rng)
        self.step, self.best_successes, self.best_step = state.step, state.best_successes, state.best_step

    def train(self, on_step: Callable[[Trainer], None] = lambda trainer: None) -> Policy:
        """Train to the last step and return the best policy (the last one, if none was rolled out).

        ``on_step`` may raise KeyboardInterrupt: the run stops with a checkpoint of that very step.
        """
        settings, selection = self.config.trainer, self.config.selection
        rollouts_at = rollout_steps(settings.steps, selection.rollouts) if self.selector else []
        logger = self.logger = MetricLogger(self.run, resume_step=self.step)
        began, began_step = time.perf_counter(), self.step
        try:
            with Watchdog(settings.stall_timeout_s) as watchdog:
                while self.step < settings.steps:
                    watchdog.beat()
                    losses = self._fit_batch()
                    self.step += 1
                    at_end = self.step == settings.steps
                    logs = self.step % settings.log_every == 0 or self.step == 1 or at_end
                    saves = self.step % settings.validate_every == 0 or self.step in rollouts_at or at_end
                    if logs or saves:
                        self._guard(losses)
                    if logs:
                        elapsed_s = time.perf_counter() - began
                        began, began_step, num = time.perf_counter(), self.step, self.step - began_step
                        logger.log(
                            self.step,
                            {
                                **{name: float(value) for name, value in losses.items()},
                                "train/steps_per_s": num / elapsed_s,
                            },
                        )
                    if saves:
                        paused = time.perf_counter()
                        logger.log(self.step, self._validate())
                        self._checkpoint(logger, roll_out=self.step in rollouts_at)
                        began += time.perf_counter() - paused  # so that the step rate is that of steps
                    try:
                        on_step(self)
                    except KeyboardInterrupt:  # between two steps, so that it can go on from here
                        if not saves:
                            self._checkpoint(logger, roll_out=False)
                        raise
        finally:
            logger.close()
        return Policy.load(self.run)

    def summary(self) -> str:
        """Say what is about to be trained, on what."""
        num_parameters = sum(parameter.numel() for parameter in self.names)
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        return (
            f"{self.store.info.task}: ACT with {num_parameters / 1e6:.2f} million parameters, chunks of "
            f"{self.config.policy.chunk_size}; {len(self.train_windows)} training and {len(self.val_windows)} "
            f"validation steps of {self.store.num_episodes} demonstrations, on {self.device}{threads}."
        )

    def status(self) -> str:
        """Return the progress bar's text: step rate, both losses, the last success rate with its interval."""
        read = self.logger.latest if self.logger else lambda name: None

        def shown(name: str, text: str) -> str:
            value = read(name)
            return "n/a" if value is None else text.format(value)

        rate, low, high = (read(f"eval/success{end}") for end in ("", "_low", "_high"))
        success = "n/a" if None in (rate, low, high) else f"{100 * rate:.0f} [{100 * low:.0f}, {100 * high:.0f}] %"  # type: ignore[operator]
        return (
            f"{shown('train/steps_per_s', '{:.0f}')}/s, L1 {shown('train/l1_posterior', '{:.4f}')} "
            f"val {shown('val/l1_prior', '{:.4f}')}, success {success}"
        )

    def outcome(self) -> str:
        """Say what came of the run."""
        if self.best_step == 0:
            last = self.checkpoints.folder / "last"
            return f"Trained {self.step} steps; no rollouts chose a best checkpoint, the last is {last}."
        return (
            f"Trained {self.step} steps; the best checkpoint is that of step {self.best_step}, with "
            f"{self.best_successes} successes of {self.config.selection.episodes}. These starts chose it, so the "
            "number flatters it; act eval measures it on others."
        )

    def _fit_batch(self) -> dict[str, Tensor]:
        """Take one gradient step; the losses stay on the device."""
        settings = self.config.trainer
        self.model.train()
        lr = learning_rate(self.step, steps=settings.steps, peak=settings.lr, warmup=settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        steps_B = torch.randint(len(self.train_windows), (settings.batch_size,)).to(self.device)
        states_BS, actions_BKA, is_pad_BK = self.train_windows.gather(steps_B)
        prediction = self.model(self.normaliser(states_BS), actions_BKA, is_pad_BK)
        l1 = masked_l1(prediction.actions_BKA, actions_BKA, is_pad_BK)
        kl = kl_divergence(prediction.mean_BZ, prediction.logvar_BZ)
        loss = l1 + settings.kl_weight * kl
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.optimizer.step()
        return {
            "train/loss": loss.detach(),
            "train/l1_posterior": l1.detach(),
            "train/kl": kl.detach(),
            "train/grad_norm": grad_norm.detach(),
            "train/lr": torch.tensor(lr),
        }

    def _guard(self, losses: dict[str, Tensor]) -> None:
        broken = [name for name, value in losses.items() if not math.isfinite(float(value))]
        if broken:
            raise TrainingError(
                f"Training diverged: {', '.join(broken)} not finite at step {self.step}. The last checkpoint is from "
                f"before. Try a lower trainer.lr (now {self.config.trainer.lr:g}) or trainer.grad_clip."
            )

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return both L1 losses on the validation episodes: with z from the CVAE, and with z = 0 as in use.

        Takes nothing from torch's generator, so that how often one validates does not change what is learnt.
        """
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        batch = max(self.config.trainer.batch_size, 256)
        for steps_B in torch.arange(len(self.val_windows), device=self.device).split(batch):  # type: ignore[no-untyped-call]
            states_BS, actions_BKA, is_pad_BK = self.val_windows.gather(steps_B)
            states_BS = self.normaliser(states_BS)
            mean_BZ, _ = self.model.encode_style(states_BS, actions_BKA, is_pad_BK)
            valid = (~is_pad_BK).sum()
            posterior = masked_l1(self.model.decode(states_BS, mean_BZ), actions_BKA, is_pad_BK)
            prior = masked_l1(self.model.predict(states_BS), actions_BKA, is_pad_BK)
            sums += torch.stack([posterior * valid, prior * valid, valid.float()]).double().cpu()
        posterior_sum, prior_sum, num = sums.tolist()
        return {"val/l1_posterior": posterior_sum / num, "val/l1_prior": prior_sum / num}

    def _checkpoint(self, logger: MetricLogger, *, roll_out: bool) -> None:
        policy = Policy(
            copy.deepcopy(self.model), copy.deepcopy(self.normaliser), self._contract(), self.config.execution,
            device=str(self.device),
        )  # fmt: skip
        is_best = False
        if roll_out and self.selector is not None:
            trial = self.selector(policy)
            logger.log(
                self.step,
                {
                    "eval/success": trial.successes / trial.num,
                    "eval/success_low": trial.low,
                    "eval/success_high": trial.high,
                    "eval/final_distance": trial.final_distance,
                },
            )
            # Never by the loss. Among equals the later one, which has seen the lower learning rate.
            is_best = trial.successes >= self.best_successes
            if is_best:
                self.best_successes, self.best_step = trial.successes, self.step
        state = TrainingState(
            step=self.step,
            best_successes=self.best_successes,
            best_step=self.best_step,
            optimizer=optimizer_tensors(self.optimizer, self.names),
            rng=torch.get_rng_state(),
        )
        probe = self.train_windows.states_TS[:: max(1, len(self.train_windows) // _PROBE_ROWS)][:_PROBE_ROWS]
        self.checkpoints.save(policy, state, probe.cpu().numpy(), is_best=is_best)

    def _contract(self) -> Contract:
        info = self.store.info
        return Contract(
            task=info.task,
            dataset_fingerprint=self.store.fingerprint or self.store.compute_fingerprint(),
            dataset_command=info.command,
            demonstrated_starts=self.store.rand_vecs.tolist(),
            horizon=info.horizon,
            control_hz=info.control_hz,
            versions=versions(),
            step=self.step,
            goal_visible=bool(self.train_windows.states_TS[:, -3:].any()),
        )

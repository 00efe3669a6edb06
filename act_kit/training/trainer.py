"""Fitting ACT to demonstrations, with rollouts on the way that choose the best checkpoint."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from act_kit.config import TrainConfig
from act_kit.datasets.chunk_dataset import load_chunk_sampler
from act_kit.datasets.frames import load_frames
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, TrainingError
from act_kit.files import quoted, require_space
from act_kit.metrics import MetricLogger
from act_kit.overrides import to_dict
from act_kit.policies.policy import Policy, PolicyMetadata, TrainingData
from act_kit.processors import num_cpus
from act_kit.training.checkpoint import Checkpoints, TrainingState, cpu_tensors, optimizer_tensors, restore_optimizer
from act_kit.training.distributed import SINGLE_PROCESS, ProcessGroup
from act_kit.training.learner import Learner
from act_kit.training.profiling import measure_peak
from act_kit.training.run import load_initial
from act_kit.training.watchdog import Watchdog
from act_kit.versions import versions

_PROBE_ROWS = {"state": 32, "images": 4}

_SLOW = 0.4
"""Share of its own best step rate below which a training says that something slows it down."""

_EXPLODED = 10
"""A training loss of so many times that of predicting zeros is not going to come back."""


@dataclass(frozen=True, kw_only=True)
class SelectionResult:
    """What selection rollouts measured of a policy.

    Attributes:
        successes: Of ``num`` episodes.
        low, high: Wilson 95 % interval of the success rate.
        final_distance: Mean over the episodes.
        by_task: Success rate of each task, where there are several.
    """

    successes: int
    num: int
    low: float
    high: float
    final_distance: float
    by_task: dict[str, float] = field(default_factory=dict)


CheckpointEvaluator = Callable[[Policy], SelectionResult]
"""Rolls a policy out on the selection starts."""


def rollout_steps(steps: int, rollouts: int) -> list[int]:
    """Spread rollouts over the second half of training, where policies begin to work, the last one at its end."""
    return sorted({round(steps * (0.5 + 0.5 * (i + 1) / rollouts)) for i in range(rollouts)})


class Trainer:
    """One training run. Everything it does follows from the configuration, the data and the step it is at."""

    def __init__(
        self, config: TrainConfig, stores: Sequence[EpisodeStore], run: Path | str, *, selector: CheckpointEvaluator | None,
        device: str = "cpu", group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:  # fmt: skip
        self.config = config
        self.stores = stores
        self.run = Path(run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.selector = selector
        self.device = torch.device(device)
        self.group = group
        self.frames = None
        if config.policy.sees_images:
            self.frames = load_frames(
                stores, config.policy.cameras, where=config.compute.image_storage, device=self.device, scratch=self.run
            )
        self.windows = load_chunk_sampler(
            stores, chunk_size=config.policy.chunk_size, val_fraction=config.trainer.val_fraction,
            seed=config.trainer.seed, device=self.device,
            images_TCHW3=None if self.frames is None else self.frames.images_TCHW3,
        )  # fmt: skip
        self._demonstrations = [
            TrainingData(
                task=store.info.task, fingerprint=store.fingerprint or store.compute_fingerprint(),
                command=store.info.command, init_states=store.recorded_init_states,
            )
            for store in stores
        ]  # fmt: skip
        self.tasks = tuple(dict.fromkeys(store.info.task for store in stores))
        self._sees_goals = config.policy.sees_state and bool(
            self.windows.states_TS[self.windows.train_steps, -3:].any(dim=1).all()
        )
        self.step = 0
        self.best_successes = -1
        self.best_step = 0
        with self._on_its_own(None):
            self.learner = Learner(config, self.windows, self.tasks, device=self.device, group=group)
        self.checkpoints = Checkpoints(self.run)
        self.logger: MetricLogger | None = None
        self._roofline: float | None = None
        self._fastest = 0.0
        self._loss_of_nothing = float(self.windows.actions_TA.abs().mean())
        # Weights and both moments of AdamW (and the average), for `last`, `best` and the one being written.
        num_bytes = 3 * (4 if config.trainer.ema_decay else 3) * 4 * self.learner.num_parameters
        require_space(self.run, num_bytes, "The checkpoints of this run")

    @contextmanager
    def _on_its_own(self, rng: tuple[Tensor, Tensor] | None) -> Generator[None]:
        """Use generators that stand at ``rng``, and float32, and leave the caller's generators and dtype alone."""
        dtype = torch.get_default_dtype()
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []):
            torch.set_default_dtype(torch.float32)
            try:
                if rng:
                    torch.set_rng_state(rng[0])
                if rng and on_gpu:
                    torch.cuda.set_rng_state(rng[1], self.device)
                yield
            finally:
                self._rng = self._generators()
                torch.set_default_dtype(dtype)

    def _generators(self) -> tuple[Tensor, Tensor]:
        """Return the states of torch's generators now; of a GPU's empty without one."""
        on_gpu = self.device.type == "cuda"
        of_device = torch.cuda.get_rng_state(self.device) if on_gpu else torch.empty(0, dtype=torch.uint8)
        return torch.get_rng_state(), of_device

    def resume(self) -> None:
        """Go on from the run's last checkpoint, to the same bits on CPU as if it had never stopped.

        A run that was killed before its first checkpoint begins again.

        Raises:
            CheckpointError: It is damaged, or of another dataset.
        """
        if not self.checkpoints.exist:
            return
        policy, state = self.checkpoints.load_last()
        theirs = [shown.fingerprint for shown in policy.contract.demonstrations]
        if theirs != [shown.fingerprint for shown in self._demonstrations]:
            commands = "; ".join(shown.command for shown in policy.contract.demonstrations)
            raise CheckpointError(f"{self.run} was trained on other data: {commands}")
        self.learner.eval_model.load_state_dict(policy.model.state_dict())
        if self.learner.average is not None:
            self.learner.model.load_state_dict(state.weights)
        self.learner.normalizer.load_state_dict(policy.normalizer.state_dict())
        restore_optimizer(self.learner.optimizer, self.learner.names, state.optimizer)
        self._rng = state.rng, state.device_rng
        self.step, self.best_successes, self.best_step = state.step, state.best_successes, state.best_step

    def train(self, on_step: Callable[[Trainer], None] = lambda trainer: None) -> Policy:
        """Train to the last step and return the best policy (the last one, if none was rolled out).

        ``on_step`` may raise KeyboardInterrupt: the run stops with a checkpoint of that very step.
        """
        with self._on_its_own(self._rng):
            if self.step == 0 and self.config.init_from:
                self.learner.take_over(load_initial(self.config, self.tasks))
            return self._train(on_step)

    def _train(self, on_step: Callable[[Trainer], None]) -> Policy:
        settings, selection = self.config.trainer, self.config.selection
        rollouts_at = rollout_steps(settings.steps, selection.num_evaluations) if self.selector else []
        if self.group.is_first:
            project = self.config.wandb_project
            self.logger = MetricLogger(
                self.run, resume_step=self.step, wandb_project=project, config=to_dict(self.config)
            )
        began, began_step = time.perf_counter(), self.step
        try:
            resume = f"act train --resume --out {quoted(self.run)}"
            with Watchdog(settings.stall_timeout_s, resume=resume) as watchdog:
                while self.step < settings.steps:
                    watchdog.beat()
                    shares = self.learner.step(self.step)
                    self.step += 1
                    at_end = self.step == settings.steps
                    logs = self.step % settings.log_every == 0 or self.step == 1 or at_end
                    saves = self.step % settings.validate_every == 0 or self.step in rollouts_at or at_end
                    if logs or saves:
                        losses = self._losses(shares)
                        self._guard(losses)
                    if logs:
                        elapsed_s = time.perf_counter() - began
                        began, began_step, num = time.perf_counter(), self.step, self.step - began_step
                        self._log({**losses, **self._measure(num / elapsed_s)})
                    if saves:
                        paused = time.perf_counter()
                        self._save(roll_out=self.step in rollouts_at)
                        began += time.perf_counter() - paused  # so that the step rate is that of steps
                    stops = False
                    try:
                        on_step(self)
                    except KeyboardInterrupt:  # between two steps, so that it can go on from here
                        stops = True
                    if self.group.any(stops):
                        if not saves:
                            self._save(roll_out=False)
                        raise KeyboardInterrupt
        finally:
            if self.logger:
                self.logger.close()
        self.group.wait()
        return Policy.load(self.run)

    def dry_run(self) -> str:
        """Compute one gradient and forget it: see that it fits, and how fast it could be.

        Raises:
            TrainingError: The GPU has no room for it.
        """
        flops = self.learner.dry_run()
        peak = measure_peak(self.device, self.learner.dtype)
        self._roofline = peak / flops
        return (
            f"A step is {flops / 1e9:.2f} GFLOP; at the {peak / 1e9:.0f} GFLOP/s of large "
            f"{str(self.learner.dtype).removeprefix('torch.')} matrix products here, {self._roofline:.0f} steps/s "
            "would be the limit."
        )

    def summary(self) -> str:
        """Say what is about to be trained, on what."""
        policy = self.config.policy
        what = self.tasks[0] if len(self.tasks) == 1 else f"{len(self.tasks)} tasks"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        together = f", {self.group.size} processes" if self.group.size > 1 else ""
        frames = f" {self.frames.reason}." if self.frames else ""
        seen = f" on {policy.inputs} ({', '.join(policy.cameras)})" if policy.cameras else ""
        return (
            f"{what}: ACT{seen} with {self.learner.num_parameters / 1e6:.2f} million parameters, chunks of "
            f"{policy.chunk_size}; {self.windows.num_train} training and {self.windows.num_val} validation steps of "
            f"{sum(store.num_episodes for store in self.stores)} demonstrations, on {self.device}{threads}{together}."
            f"{frames}"
        )

    @property
    def logged_at(self) -> int:
        """The step of the last record."""
        return self.logger.step if self.logger else 0

    def status(self) -> str:
        """Return the progress bar's text: step rate, both losses, the last success rate with its interval."""
        read = self.logger.latest if self.logger else lambda name: None

        def shown(name: str, text: str) -> str:
            value = read(name)
            return "n/a" if value is None else text.format(value)

        rate, low, high = (read(f"eval/success{end}") for end in ("", "_low", "_high"))
        success = "n/a" if None in (rate, low, high) else f"{100 * rate:.0f} [{100 * low:.0f}, {100 * high:.0f}] %"  # type: ignore[operator]
        fitted = "train/l1_posterior" if self.config.policy.cvae_layers else "train/l1_prior"
        slow = (read("train/steps_per_s") or 0) < 100
        roofline = f" of {self._roofline:.0f}" if self._roofline else ""
        return (
            f"{shown('train/steps_per_s', '{:.3g}' if slow else '{:.0f}')}{roofline}/s, L1 {shown(fitted, '{:.4f}')} "
            f"val {shown('val/l1', '{:.4f}')}, success {success}"
        )

    def slowed(self) -> str:
        """Say what the step rate of the last record is, if that is far below the best one; otherwise return ""."""
        rate = self.logger.latest("train/steps_per_s") if self.logger else None
        if rate is None:
            return ""
        self._fastest = max(self._fastest, rate)
        if rate >= _SLOW * self._fastest:
            return ""
        busy = f" The load is {os.getloadavg()[0]:.0f} on {num_cpus()} processors." if self.device.type == "cpu" else ""
        return f"Step {self.step}: {rate:.2g} steps/s; {self._fastest:.2g} were reached before.{busy}"

    def outcome(self) -> str:
        """Say what came of the run."""
        if self.best_step == 0:
            last = self.checkpoints.folder / "last"
            return f"Trained {self.step} steps; no rollouts chose a best checkpoint, the last is {last}."
        return (
            f"Trained {self.step} steps; the best checkpoint is that of step {self.best_step}, with "
            f"{self.best_successes} successes of {self.config.selection.episodes * len(self.tasks)}. These "
            "starts chose it, so the number flatters it; act eval measures it on others."
        )

    def _losses(self, shares: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up what the processes computed of each loss; all have the same gradient."""
        alike = ("train/grad_norm", "train/lr")
        return {name: float(value if name in alike else self.group.sum(value)) for name, value in shares.items()}

    def _guard(self, losses: Mapping[str, float]) -> None:
        l1 = losses["train/l1_posterior" if self.config.policy.cvae_layers else "train/l1_prior"]
        broken = [name for name, value in losses.items() if not math.isfinite(value)]
        if broken:
            what = f"{', '.join(broken)} not finite"
        elif l1 > _EXPLODED * self._loss_of_nothing:
            what = f"an L1 of {l1:.3g}, where predicting zeros has {self._loss_of_nothing:.3g},"
        else:
            return
        raise TrainingError(
            f"Training diverged: {what} at step {self.step}. The last checkpoint is from before. Try a lower "
            f"trainer.lr (now {self.config.trainer.lr:g}) or trainer.grad_clip."
        )

    def _measure(self, steps_per_s: float) -> dict[str, float]:
        """Return what is measured of the machine."""
        measured = {"train/steps_per_s": steps_per_s, "host/memory": psutil.Process().memory_info().rss / 1e9}
        if self._roofline is not None:
            measured["train/roofline_fraction"] = steps_per_s / self._roofline
        if self.device.type == "cuda":
            measured["device/memory"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return measured

    def _log(self, values: Mapping[str, float]) -> None:
        if self.logger:
            self.logger.log(self.step, values)

    def _save(self, *, roll_out: bool) -> None:
        """Validate, perhaps roll out, and leave a checkpoint: the first process for all, who wait for it."""
        if self.group.is_first:
            self._log(self.learner.validate())
            self._checkpoint(roll_out=roll_out)
        self.group.wait()

    def _checkpoint(self, *, roll_out: bool) -> None:
        learner = self.learner
        policy = Policy(
            copy.deepcopy(learner.eval_model), copy.deepcopy(learner.normalizer), self._contract(), self.config.chunking,
            device=str(self.device),
        )  # fmt: skip
        if roll_out and self.selector is not None:
            trial = self.selector(policy)
            self._log(
                {
                    "eval/success": trial.successes / trial.num,
                    "eval/success_low": trial.low,
                    "eval/success_high": trial.high,
                    "eval/final_distance": trial.final_distance,
                    **{f"eval/success/{task}": value for task, value in trial.by_task.items()},
                }
            )
            # Never by the loss. Among equals the later one, which has seen the lower learning rate.
            if trial.successes >= self.best_successes:
                self.best_successes, self.best_step = trial.successes, self.step
        rng, device_rng = self._generators()
        state = TrainingState(
            step=self.step,
            best_successes=self.best_successes,
            best_step=self.best_step,
            optimizer=optimizer_tensors(learner.optimizer, learner.names),
            weights={} if learner.average is None else cpu_tensors(learner.model),
            rng=rng,
            device_rng=device_rng,
        )
        self.checkpoints.save(policy, state, self._self_test())

    def _self_test(self) -> dict[str, np.ndarray]:
        """Choose observations, evenly over the training data, by which a checkpoint proves itself."""
        rows = _PROBE_ROWS["images" if self.frames else "state"]
        steps = self.windows.train_steps[:: max(1, self.windows.num_train // rows)][:rows]
        batch = self.windows.gather(steps)
        self_test = {"states": batch.states_BS.cpu().numpy(), "tasks": batch.tasks_B.cpu().numpy()}
        return self_test if batch.images_BCHW3 is None else {**self_test, "images": batch.images_BCHW3.cpu().numpy()}

    def _contract(self) -> PolicyMetadata:
        info = self.stores[0].info
        return PolicyMetadata(
            demonstrations=self._demonstrations,
            horizon=info.horizon,
            control_hz=info.control_hz,
            versions=versions(),
            step=self.step,
            goal_visible=self._sees_goals,
            views=self.frames.views if self.frames else None,
            gl_renderer=self.frames.gl_renderer if self.frames else "",
        )

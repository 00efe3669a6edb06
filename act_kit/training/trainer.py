"""Training loop: fits a policy to demonstrations and selects the best checkpoint by rollouts during training."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor

from act_kit.config.training import TrainConfig
from act_kit.datasets.chunk_dataset import load_chunk_sampler
from act_kit.datasets.frames import load_frames
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, TrainingError
from act_kit.files import quoted, require_space
from act_kit.metrics import MetricLogger
from act_kit.options import to_dict
from act_kit.policies.metadata import PolicyMetadata, TrainingDataset
from act_kit.policies.policy import Policy
from act_kit.processors import num_cpus
from act_kit.sim.cameras import camera_matrices
from act_kit.training.checkpoint import Checkpoints, TrainingState, optimizer_tensors, restore_optimizer
from act_kit.training.distributed import SINGLE_PROCESS, ProcessGroup
from act_kit.training.learner import Learner
from act_kit.training.profiling import measure_peak
from act_kit.training.run import load_initial
from act_kit.training.schedule import describe_steps, num_chunks, rollout_steps, with_schedule
from act_kit.training.watchdog import watchdog
from act_kit.versions import versions

_SELF_TEST_ROWS = {"state": 32, "images": 4}

_SLOW_FRACTION = 0.4
"""Fraction of a run's best step rate below which it warns that it is slow."""

_DIVERGED_L1 = 3.0
"""L1 above which training counts as diverged. Actions are in [-1, 1], and random weights are off by about 1."""


@dataclass(frozen=True, kw_only=True)
class SelectionResult:
    """Result of a policy's selection rollouts.

    Attributes:
        successes: Number of successful episodes.
        num: Number of episodes.
        low, high: Wilson 95 % interval of the success rate.
        final_distance: Mean final distance over the episodes.
        by_task: Success rate of each task of a multi-task policy.
    """

    successes: int
    num: int
    low: float
    high: float
    final_distance: float
    by_task: dict[str, float] = field(default_factory=dict)


CheckpointEvaluator = Callable[[Policy], SelectionResult]
"""Function that rolls out a policy from the selection initial states."""


def _describe(store: EpisodeStore) -> TrainingDataset:
    return TrainingDataset(
        task=store.info.task,
        fingerprint=store.content_fingerprint,
        command=store.info.command,
        init_states=store.recorded_init_states,
    )


class Trainer:
    """One training run. Its behavior is determined by the configuration, the data and the current step."""

    def __init__(
        self,
        config: TrainConfig,
        stores: Sequence[EpisodeStore],
        run: Path | str,
        *,
        evaluator: CheckpointEvaluator | None,
        device: str = "cpu",
        group: ProcessGroup = SINGLE_PROCESS,
    ) -> None:
        config = with_schedule(config, num_chunks(stores))
        self.config = config
        self.stores = stores
        self.run = Path(run)
        self.run.mkdir(parents=True, exist_ok=True)
        self.evaluator = evaluator
        self.device = torch.device(device)
        self.group = group
        self.frames = cameras_C34 = None
        if config.policy.sees_images:
            self.frames = load_frames(
                stores, config.policy.cameras, where=config.compute.image_storage, device=self.device, scratch=self.run
            )
            if config.policy.backbone == "keypoints":
                matrices = camera_matrices(self.frames.views)
                cameras_C34 = torch.from_numpy(matrices).to(self.device, torch.float32)
        self.sampler = load_chunk_sampler(
            stores,
            chunk_size=config.policy.chunk_size,
            val_fraction=config.trainer.val_fraction,
            max_share_after_success=config.trainer.max_share_after_success,
            seed=config.trainer.seed,
            device=self.device,
            images_TCHW3=None if self.frames is None else self.frames.images_TCHW3,
            cameras_C34=cameras_C34,
        )
        goals_TG = self.sampler.states_TS[self.sampler.train_steps, -3:]
        self.metadata = PolicyMetadata(
            datasets=[_describe(store) for store in stores],
            horizon=stores[0].info.horizon,
            control_hz=stores[0].info.control_hz,
            versions=versions(),
            step=0,
            goal_visible=config.policy.sees_state and bool(goals_TG.any(dim=1).all()),
            views=self.frames.views if self.frames else None,
            gl_renderer=self.frames.gl_renderer if self.frames else "",
        )
        self.tasks = self.metadata.tasks
        self.step = 0
        self.best_successes = -1
        self.best_step = 0
        with self._isolated_rng(None):
            self.learner = Learner(config, self.sampler, self.tasks, device=self.device, group=group)
        self.checkpoints = Checkpoints(self.run)
        self.logger: MetricLogger | None = None
        self._roofline_steps_per_s: float | None = None
        self._best_steps_per_s = 0.0
        # Weights and both moments of AdamW (and the moving average), for `last`, `best` and the one being written.
        num_bytes = 3 * (4 if config.trainer.ema_decay else 3) * 4 * self.learner.num_parameters
        require_space(self.run, num_bytes, "The checkpoints of this run")

    @contextmanager
    def _isolated_rng(self, rng: dict[str, Tensor] | None) -> Generator[None]:
        """Use float32 and torch's generators in state ``rng``, then restore the caller's dtype and generators."""
        dtype = torch.get_default_dtype()
        on_gpu = self.device.type == "cuda"
        with torch.random.fork_rng([self.device] if on_gpu else []):
            torch.set_default_dtype(torch.float32)
            try:
                if rng:
                    torch.set_rng_state(rng["host"])
                if rng and on_gpu:
                    torch.cuda.set_rng_state(rng["device"], self.device)
                yield
            finally:
                self._rng = self._rng_state()
                torch.set_default_dtype(dtype)

    def _rng_state(self) -> dict[str, Tensor]:
        """Return the current states of torch's generators; that of the device is empty without a GPU."""
        on_gpu = self.device.type == "cuda"
        device_rng = torch.cuda.get_rng_state(self.device) if on_gpu else torch.empty(0, dtype=torch.uint8)
        return {"host": torch.get_rng_state(), "device": device_rng}

    def resume(self) -> None:
        """Resume from the run's last checkpoint, bit-exact on CPU with an uninterrupted run.

        A run that was killed before its first checkpoint begins again.

        Raises:
            CheckpointError: The checkpoint is damaged, or was trained on another dataset.
        """
        if not self.checkpoints.exist:
            return
        policy, state = self.checkpoints.load_last()
        if policy.metadata.fingerprints != self.metadata.fingerprints:
            commands = "; ".join(data.command for data in policy.metadata.datasets)
            raise CheckpointError(f"{self.run} was trained on other data: {commands}")
        self.learner.eval_model.load_state_dict(policy.model.state_dict())
        if self.learner.average is not None:
            self.learner.model.load_state_dict(state.weights)
        self.learner.normalizer.load_state_dict(policy.normalizer.state_dict())
        restore_optimizer(self.learner.optimizer, self.learner.names, state.optimizer)
        self._rng = state.rng
        self.step, self.best_successes, self.best_step = state.step, state.best_successes, state.best_step

    def train(self, on_step: Callable[[Trainer], None] = lambda trainer: None) -> Policy:
        """Train to the last step and return the best policy (the last one if none was rolled out).

        ``on_step`` may raise KeyboardInterrupt: the run then stops with a checkpoint of that step.
        """
        with self._isolated_rng(self._rng):
            if self.step == 0 and self.config.init_from:
                self.learner.load_weights(load_initial(self.config, self.tasks))
            return self._train(on_step)

    def _train(self, on_step: Callable[[Trainer], None]) -> Policy:
        settings, selection = self.config.trainer, self.config.selection
        rollouts_at = rollout_steps(settings.steps, selection.num_evaluations) if self.evaluator else []
        if self.group.is_first:
            project = self.config.wandb_project
            self.logger = MetricLogger(
                self.run, resume_step=self.step, wandb_project=project, config=to_dict(self.config)
            )
        began, began_step = time.perf_counter(), self.step
        resume = f"act train --resume --out {quoted(self.run)}"
        try:
            with watchdog(settings.stall_timeout_s, resume=resume) as beat:
                while self.step < settings.steps:
                    beat()
                    shares = self.learner.step(self.step)
                    self.step += 1
                    at_end = self.step == settings.steps
                    logs = self.step % settings.log_every == 0 or self.step == 1 or at_end
                    saves = self.step % settings.validate_every == 0 or self.step in rollouts_at or at_end
                    if logs or saves:
                        losses = self._sum_losses(shares)
                        self._check_losses(losses)
                    if logs:
                        elapsed_s = time.perf_counter() - began
                        began, began_step, num = time.perf_counter(), self.step, self.step - began_step
                        self._log({**losses, **self._machine_metrics(num / elapsed_s)})
                    if saves:
                        paused = time.perf_counter()
                        self._save(roll_out=self.step in rollouts_at)
                        began += time.perf_counter() - paused  # exclude checkpoints from the step rate
                    stops = False
                    try:
                        on_step(self)
                    except KeyboardInterrupt:  # between two steps, so the run can resume from this one
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

    def _sum_losses(self, shares: Mapping[str, Tensor]) -> dict[str, float]:
        """Add up the processes' shares of each loss; the gradient norm and learning rate are the same in all."""
        losses: dict[str, float] = {}
        for name, value in shares.items():
            is_shared = name in ("train/grad_norm", "train/lr")
            losses[name] = float(value if is_shared else self.group.sum(value))
        return losses

    def _check_losses(self, losses: Mapping[str, float]) -> None:
        l1 = losses.get(f"train/{self.learner.model.training_l1}", 0.0)
        not_finite = [name for name, value in losses.items() if not math.isfinite(value)]
        if not_finite:
            problem = f"{', '.join(not_finite)} not finite"
        elif l1 > _DIVERGED_L1:
            problem = f"an L1 of {l1:.3g}, of actions in [-1, 1],"
        else:
            return
        raise TrainingError(
            f"Training diverged: {problem} at step {self.step}. The last checkpoint is from before. Fix: a lower "
            f"trainer.lr (now {self.config.trainer.lr:g}) or trainer.grad_clip."
        )

    def _machine_metrics(self, steps_per_s: float) -> dict[str, float]:
        """Return the step rate and the memory use."""
        metrics = {"train/steps_per_s": steps_per_s, "host/memory": psutil.Process().memory_info().rss / 1e9}
        if self._roofline_steps_per_s is not None:
            metrics["train/roofline_fraction"] = steps_per_s / self._roofline_steps_per_s
        if self.device.type == "cuda":
            metrics["device/memory"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return metrics

    def _log(self, values: Mapping[str, float]) -> None:
        if self.logger:
            self.logger.log(self.step, values)

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _save(self, *, roll_out: bool) -> None:
        """Validate, optionally roll out, and save a checkpoint in the first process; the others wait for it."""
        if self.group.is_first:
            self._save_checkpoint(roll_out=roll_out)
        self.group.wait()

    def _save_checkpoint(self, *, roll_out: bool) -> None:
        learner = self.learner
        self._log(learner.validate())
        model, normalizer = copy.deepcopy(learner.eval_model), copy.deepcopy(learner.normalizer)
        metadata = replace(self.metadata, step=self.step)
        policy = Policy(model, normalizer, metadata, self.config.chunking, device=str(self.device))
        if roll_out and self.evaluator is not None:
            self._select(self.evaluator(policy))
        state = TrainingState(
            step=self.step,
            best_successes=self.best_successes,
            best_step=self.best_step,
            optimizer=optimizer_tensors(learner.optimizer, learner.names),
            weights={} if learner.average is None else learner.model.state_dict(),
            rng=self._rng_state(),
        )
        self.checkpoints.save(policy, state, self._self_test())

    def _select(self, result: SelectionResult) -> None:
        """Record a result, and make the checkpoint the best if its success rate is not lower.

        Never select by the loss. On a tie, select the later checkpoint, which had the lower learning rate.
        """
        values = {
            "eval/success": result.successes / result.num,
            "eval/success_low": result.low,
            "eval/success_high": result.high,
            "eval/final_distance": result.final_distance,
        }
        for task, success in result.by_task.items():
            values[f"eval/success/{task}"] = success
        self._log(values)
        if result.successes >= self.best_successes:
            self.best_successes, self.best_step = result.successes, self.step

    def _self_test(self) -> dict[str, np.ndarray]:
        """Return the checkpoint's self-test batch: observations spaced evenly over the training data."""
        rows = _SELF_TEST_ROWS["images" if self.frames else "state"]
        steps = self.sampler.train_steps[:: max(1, self.sampler.num_train // rows)][:rows]
        batch = self.sampler.gather(steps)
        self_test = {"states": batch.states_BS.cpu().numpy(), "tasks": batch.tasks_B.cpu().numpy()}
        if self.learner.model.recognizes_task:
            self_test["first_states"] = self.sampler.first_states(steps).cpu().numpy()
        if batch.images_BCHW3 is not None:
            self_test["images"] = batch.images_BCHW3.cpu().numpy()
        return self_test

    # -- texts -----------------------------------------------------------------------------------------------------

    def dry_run(self) -> str:
        """Compute one gradient and discard it, to check that a step fits in memory and to estimate its top speed.

        Raises:
            TrainingError: A step does not fit on the GPU.
        """
        flops = self.learner.dry_run()
        peak = measure_peak(self.device, self.learner.dtype)
        self._roofline_steps_per_s = peak / flops
        return (
            f"One step takes {flops / 1e9:.2f} GFLOP. At the {peak / 1e9:.0f} GFLOP/s of large "
            f"{str(self.learner.dtype).removeprefix('torch.')} matrix products on this machine, the limit is "
            f"{self._roofline_steps_per_s:.0f} steps/s."
        )

    def summary(self) -> str:
        """Describe the model, the data and the device before training."""
        policy, model = self.config.policy, type(self.learner.model).__name__
        tasks = self.tasks[0] if len(self.tasks) == 1 else f"{len(self.tasks)} tasks"
        threads = f", {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        processes = f", {self.group.size} processes" if self.group.size > 1 else ""
        frames = f" {self.frames.reason}." if self.frames else ""
        inputs = f" on {policy.inputs} ({', '.join(policy.cameras)})" if policy.cameras else ""
        return (
            f"{tasks}: {model}{inputs} with {self.learner.num_parameters / 1e6:.2f} million parameters, chunks of "
            f"{policy.chunk_size}; {self.sampler.num_train} training and {self.sampler.num_val} validation steps of "
            f"{sum(store.num_episodes for store in self.stores)} demonstrations, on {self.device}{threads}{processes}."
            f"{frames} {describe_steps(self.config, num_chunks(self.stores))}."
        )

    @property
    def last_logged_step(self) -> int:
        """Step of the last record."""
        return self.logger.step if self.logger else 0

    def _latest(self, name: str) -> float | None:
        return self.logger.latest(name) if self.logger else None

    def status(self) -> str:
        """Return the progress bar's text: step rate, both losses, the last success rate with its interval."""
        success, speed = "n/a", "n/a"
        if self._latest("eval/success") is not None:
            rate, low, high = (100 * (self._latest(f"eval/success{end}") or 0.0) for end in ("", "_low", "_high"))
            success = f"{rate:.0f} [{low:.0f}, {high:.0f}] %"
        steps_per_s = self._latest("train/steps_per_s")
        if steps_per_s is not None:
            speed = f"{steps_per_s:.3g}" if steps_per_s < 100 else f"{steps_per_s:.0f}"
        losses = [self._latest(f"train/{self.learner.model.training_l1}"), self._latest("val/l1")]
        l1, val_l1 = ("n/a" if loss is None else f"{loss:.4f}" for loss in losses)
        roofline = f" of {self._roofline_steps_per_s:.0f}" if self._roofline_steps_per_s else ""
        return f"{speed}{roofline}/s, L1 {l1} val {val_l1}, success {success}"

    def slow_warning(self) -> str:
        """Return a warning if the last recorded step rate is far below the run's best; otherwise ""."""
        rate = self._latest("train/steps_per_s")
        if rate is None:
            return ""
        self._best_steps_per_s = max(self._best_steps_per_s, rate)
        if rate >= _SLOW_FRACTION * self._best_steps_per_s:
            return ""
        load = f" The load is {os.getloadavg()[0]:.0f} on {num_cpus()} CPU cores." if self.device.type == "cpu" else ""
        return f"Step {self.step}: {rate:.2g} steps/s, down from {self._best_steps_per_s:.2g}.{load}"

    def result_text(self) -> str:
        """Describe the result of the run."""
        if self.best_step == 0:
            last = self.checkpoints.folder / "last"
            return f"Trained {self.step} steps without selection rollouts; the last checkpoint is {last}."
        num = self.config.selection.episodes_per_task(len(self.tasks)) * len(self.tasks)
        return (
            f"Trained {self.step} steps; the best checkpoint is from step {self.best_step}, with "
            f"{self.best_successes} successes of {num}. It was selected "
            "on these initial states, so this success rate is optimistic; act eval measures it on other ones."
        )

"""Gradient steps on batches that are gathered by index from data on the device, without waiting for the device.

A batch is divided among the processes of the group and, in each process, into parts. The loss of a part is its share of
the whole batch's loss, so the division does not change what is learned. Every process draws the random numbers of the
whole batch.

Shapes: B batch, C cameras.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from act_kit.config.training import TrainConfig
from act_kit.datasets.chunk_dataset import ChunkSampler
from act_kit.errors import ConfigError, TrainingError
from act_kit.policies.chunk_model import ChunkBatch, ChunkModel, Observation, make_model
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.policy import Policy
from act_kit.policies.task_embedding import load_task_embeddings
from act_kit.policies.vision import random_shift
from act_kit.sim.tasks import STATE_DIM
from act_kit.training.distributed import ProcessGroup
from act_kit.training.profiling import count_flops
from act_kit.training.schedule import learning_rate

_EMA_WARMUP = 10
"""Warm-up of the moving average: its decay is (1 + n) / (10 + n) at step n, up to ``trainer.ema_decay``."""


class Learner:
    """The model, its optimizer and, optionally, the moving average of its weights.

    Attributes:
        model: Model that is trained.
        average: Moving average of the model, or None.
        normalizer: Normalizer fitted to the training states.
        names: Names of the model's parameters.
        optimizer: AdamW.
        dtype: Type of the matrix products.
    """

    def __init__(
        self,
        config: TrainConfig,
        sampler: ChunkSampler,
        tasks: tuple[str, ...],
        *,
        device: torch.device,
        group: ProcessGroup,
    ) -> None:
        """Build the model from ``config.trainer.seed`` and fit the normalizer.

        Raises:
            ConfigError: A batch has more parts than samples, or the task embeddings are invalid.
            CheckpointError: The backbone weights are invalid.
        """
        self.config = config
        self.sampler = sampler
        self.device = device
        self.group = group
        self._num_parts = group.size * config.compute.micro_batches
        if self._num_parts > config.trainer.batch_size:
            raise ConfigError(
                f"trainer.batch_size={config.trainer.batch_size} cannot be divided among {group.size} processes with "
                f"compute.micro_batches={config.compute.micro_batches} parts each."
            )
        torch.manual_seed(config.trainer.seed)
        embeddings = config.policy.task_embeddings
        given = load_task_embeddings(Path(embeddings), tasks) if embeddings and len(tasks) > 1 else None
        self.model = make_model(config.policy, num_tasks=len(tasks), task_embeddings_NE=given).to(device)
        self.model.load_pretrained()
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.trainer.ema_decay else None
        self.normalizer = Normalizer(STATE_DIM).to(device)
        self.normalizer.fit(sampler.states_TS[sampler.train_steps])
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            list(self.names), lr=config.trainer.lr, weight_decay=config.trainer.weight_decay, fused=True
        )
        on_gpu = device.type == "cuda"
        half = config.compute.precision == "bfloat16" or (config.compute.precision == "auto" and on_gpu)
        self.dtype = torch.bfloat16 if half else torch.float32
        self._compiles = config.compute.compile == "on" or (config.compute.compile == "auto" and on_gpu)
        # A captured CUDA graph reuses the memory of the gradients, so several parts could not accumulate into them.
        self._captures = self._compiles and on_gpu and self._num_parts == 1
        self._compute_loss: Callable[[ChunkBatch], dict[str, Tensor]] = self.model
        if self._compiles:
            self._compute_loss = torch.compile(self.model, mode="reduce-overhead" if self._captures else "default")
        self._distributed: DistributedDataParallel | None = None
        if group.size > 1:
            self._distributed = DistributedDataParallel(self._compute_loss, broadcast_buffers=False)
            self._compute_loss = self._distributed

    def load_weights(self, policy: Policy) -> None:
        """Initialize from a policy's weights and its normalizer, which the weights were trained with."""
        for model in (self.model, self.average):
            if model is not None:
                model.load_state_dict(policy.model.state_dict())
        self.normalizer.load_state_dict(policy.normalizer.state_dict())

    @property
    def eval_model(self) -> ChunkModel:
        """Model that becomes the policy: the moving average if there is one."""
        return self.model if self.average is None else self.average

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.names)

    def step(self, index: int) -> dict[str, Tensor]:
        """Take gradient step ``index``, from 0; return this process's share of the losses, still on the device."""
        settings = self.config.trainer
        self.model.train()
        if self._captures:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        lr = learning_rate(index, steps=settings.steps, peak=settings.lr, warmup=settings.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        metrics = {f"train/{name}": loss for name, loss in self._add_gradients(self._compute_loss).items()}
        metrics["train/grad_norm"] = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            decay = min(settings.ema_decay, (1 + index) / (_EMA_WARMUP + index))
            with torch.no_grad():
                for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    average.lerp_(parameter, 1 - decay)
        return {**metrics, "train/lr": torch.tensor(lr)}

    def _add_gradients(self, compute_loss: Callable[[ChunkBatch], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Sample a batch and add the gradient of its loss to the parameters' gradients; return its losses."""
        settings, policy = self.config.trainer, self.config.policy
        steps_B = self.sampler.sample(settings.batch_size)
        num_valid = (self.sampler.last_T[steps_B] - steps_B + 1).clamp(max=policy.chunk_size).sum()
        offsets_BC2 = noise = None
        if policy.sees_images:
            shape = (settings.batch_size, len(policy.cameras), 2)
            offsets_BC2 = torch.randint(2 * settings.shift_px + 1, shape, device=self.device)
        # Separate parts and a compiled model would draw other noise than the whole batch does in eager mode.
        if self._num_parts > 1 or self._compiles:
            noise = self.model.draw_noise(settings.batch_size, self.device)
        sums: dict[str, Tensor] = {}
        parts = torch.arange(settings.batch_size, device=self.device).tensor_split(self._num_parts)
        own_parts = parts[self.group.rank :: self.group.size]
        for number, part in enumerate(own_parts):
            batch = self._make_batch(steps_B[part], None if offsets_BC2 is None else offsets_BC2[part])
            part_noise = None if noise is None else noise[part]
            batch = replace(batch, num_valid=num_valid, batch_size=settings.batch_size, noise=part_noise)
            # Processes exchange gradients after the last part only.
            is_last = number == len(own_parts) - 1
            with nullcontext() if self._distributed is None or is_last else self._distributed.no_sync():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    losses = compute_loss(batch)
                # Gradients are averaged over processes, but the losses are shares of a sum.
                (losses["loss"] * self.group.size).backward()  # type: ignore[no-untyped-call]
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach().clone()
        return sums

    def _make_batch(self, steps_B: Tensor, offsets_BC2: Tensor | None = None) -> ChunkBatch:
        """Gather samples, with images shifted by ``offsets_BC2``, as a whole batch."""
        samples = self.sampler.gather(steps_B)
        images_BCHW3 = samples.images_BCHW3
        if images_BCHW3 is not None and offsets_BC2 is not None:
            images_BCHW3 = random_shift(images_BCHW3, self.config.trainer.shift_px, offsets_BC2)
        first_states_BS = None
        if self.model.recognizes_task:
            first_states_BS = self.normalizer(self.sampler.first_states(steps_B))
        observation = Observation(
            states_BS=self.normalizer(samples.states_BS),
            raw_states_BS=samples.states_BS,
            tasks_B=samples.tasks_B,
            images_BCHW3=images_BCHW3,
            first_states_BS=first_states_BS,
        )
        return ChunkBatch(
            observation=observation,
            actions_BKA=samples.actions_BKA,
            is_pad_BK=samples.is_pad_BK,
            num_valid=(~samples.is_pad_BK).sum(),
            batch_size=len(steps_B),
            cameras_C34=self.sampler.cameras_C34,
        )

    def dry_run(self) -> int:
        """Compute a gradient and discard it; return the floating-point operations of a step in this process.

        Raises:
            TrainingError: A step does not fit on the device.
        """
        on_gpu = [self.device] if self.device.type == "cuda" else []
        self.model.train()
        try:
            with torch.random.fork_rng(on_gpu):
                flops = count_flops(lambda: self._add_gradients(self.model))
        except torch.OutOfMemoryError as error:
            parts = self.config.compute.micro_batches
            raise TrainingError(
                f"A batch of {self.config.trainer.batch_size} in {parts} parts does not fit on the GPU. Fix: "
                f"compute.micro_batches={2 * parts}"
            ) from error
        self.optimizer.zero_grad()
        return flops

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the losses on the validation episodes: ``val/l1``, as at inference, and those that the model adds.

        Leaves torch's generator unchanged, so the validation frequency does not change what is learned.
        """
        model = self.eval_model.eval()
        sums: dict[str, float] = defaultdict(float)
        total = 0
        size = max(self.config.trainer.batch_size, 256) if not self.config.policy.sees_images else 64
        for steps_B in self.sampler.val_steps.split(size):  # type: ignore[no-untyped-call]
            batch = self._make_batch(steps_B)
            for name, loss in model.compute_validation_loss(batch).items():
                sums[f"val/{name}"] += float(loss * batch.num_valid)
            total += int(batch.num_valid)
        return {name: value / total for name, value in sums.items()}

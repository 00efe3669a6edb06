"""Gradient steps: a batch by index from data that is already on the device, and nothing that waits for it.

A batch is divided among the processes of the group and, in each, into parts; every part's loss is its share of the
whole batch's, so neither division changes what is learnt. All random numbers are drawn for the whole batch, by all.

Shapes: B batch, C cameras.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from act_kit.config import TrainConfig
from act_kit.datasets.chunk_dataset import Batch, ChunkSampler
from act_kit.errors import ConfigError, TrainingError
from act_kit.policies.act import ACT, Observation, Prediction, kl_divergence, masked_l1
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.policy import Policy
from act_kit.policies.task_embedding import load_task_embeddings
from act_kit.policies.vision import ResNet18, load_backbone, random_shift
from act_kit.sim.tasks import STATE_DIM
from act_kit.training.distributed import ProcessGroup
from act_kit.training.profiling import count_flops

_EMA_WARMUP = 10
"""The average begins as the weights, and its memory grows to what was asked for: (1 + n) / (10 + n) at step n."""


def learning_rate(step: int, *, steps: int, peak: float, warmup: float) -> float:
    """Rise linearly for ``warmup`` of the steps, then fall to 0 along a cosine; ``step`` counts from 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


class Learner:
    """The model, its optimiser and perhaps the moving average of its weights.

    Attributes:
        model: What is fitted.
        average: Its moving average, or None.
        normaliser: Fitted to the training states.
        names: Of the model's parameters.
        optimizer: AdamW.
        dtype: Of matrix products.
    """

    def __init__(
        self,
        config: TrainConfig,
        windows: ChunkSampler,
        tasks: tuple[str, ...],
        *,
        device: torch.device,
        group: ProcessGroup,
    ) -> None:
        """Build everything from ``config.trainer.seed``.

        Raises:
            ConfigError: More parts than windows in a batch, or unusable task embeddings.
            CheckpointError: Unusable weights of the backbone.
        """
        self.config = config
        self.windows = windows
        self.device = device
        self.group = group
        self._num_parts = group.size * config.compute.micro_batches
        if self._num_parts > config.trainer.batch_size:
            raise ConfigError(
                f"trainer.batch_size={config.trainer.batch_size} cannot be divided among {group.size} processes and "
                f"compute.micro_batches={config.compute.micro_batches} parts in each."
            )
        torch.manual_seed(config.trainer.seed)
        embeddings = config.policy.task_embeddings
        given = load_task_embeddings(Path(embeddings), tasks) if embeddings and len(tasks) > 1 else None
        self.model = ACT(config.policy, num_tasks=len(tasks), task_embeddings_NE=given).to(device)
        if config.policy.backbone_weights:
            net = self.model.vision.net
            assert isinstance(net, ResNet18)
            load_backbone(net, Path(config.policy.backbone_weights))
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.trainer.ema_decay else None
        self.normalizer = Normalizer(STATE_DIM).to(device)
        self.normalizer.fit(windows.states_TS[windows.train_steps])
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            list(self.names), lr=config.trainer.lr, weight_decay=config.trainer.weight_decay, fused=True
        )
        on_gpu = device.type == "cuda"
        half = config.compute.precision == "bfloat16" or (config.compute.precision == "auto" and on_gpu)
        self.dtype = torch.bfloat16 if half else torch.float32
        self._forward: Callable[..., Prediction] = self.model
        self._compiles = config.compute.compile == "on" or (config.compute.compile == "auto" and on_gpu)
        # A captured graph hands out the same gradients' memory again, so that parts could not add to them.
        self._captures = self._compiles and on_gpu and self._num_parts == 1
        if self._compiles:
            self._forward = torch.compile(self.model, mode="reduce-overhead" if self._captures else "default")
        self._synchronised: DistributedDataParallel | None = None
        if group.size > 1:
            self._synchronised = DistributedDataParallel(self._forward, broadcast_buffers=False)
            self._forward = self._synchronised

    def take_over(self, policy: Policy) -> None:
        """Begin with the weights of a policy, and with its normaliser, whose scale they were fitted to."""
        for model in (self.model, self.average):
            if model is not None:
                model.load_state_dict(policy.model.state_dict())
        self.normalizer.load_state_dict(policy.normalizer.state_dict())

    @property
    def eval_model(self) -> ACT:
        """The model that becomes the policy."""
        return self.model if self.average is None else self.average

    @property
    def num_parameters(self) -> int:
        """Numbers that are fitted."""
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
        losses = self._add_gradients(self._forward)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            memory = min(settings.ema_decay, (1 + index) / (_EMA_WARMUP + index))
            with torch.no_grad():
                for average, parameter in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    average.lerp_(parameter, 1 - memory)
        return {**losses, "train/grad_norm": grad_norm.detach(), "train/lr": torch.tensor(lr)}

    def _add_gradients(self, forward: Callable[..., Prediction]) -> dict[str, Tensor]:
        """Draw a batch and add the gradient of its loss to that of the parameters."""
        settings, policy = self.config.trainer, self.config.policy
        steps_B = self.windows.draw(settings.batch_size)
        num_valid = (self.windows.last_T[steps_B] - steps_B + 1).clamp(max=policy.chunk_size).sum()
        offsets_BC2 = noise_BZ = None
        if policy.sees_images:
            shape = (settings.batch_size, len(policy.cameras), 2)
            offsets_BC2 = torch.randint(2 * settings.shift_px + 1, shape, device=self.device)
        if policy.cvae_layers and (self._num_parts > 1 or self._compiles):  # each part's, and compiled, would be others
            noise_BZ = torch.randn(settings.batch_size, policy.latent_dim, device=self.device)
        sums: dict[str, Tensor] = {}
        parts = torch.arange(settings.batch_size, device=self.device).tensor_split(self._num_parts)
        mine = parts[self.group.rank :: self.group.size]
        for number, part in enumerate(mine):
            batch = self.windows.gather(steps_B[part])
            offsets = None if offsets_BC2 is None else offsets_BC2[part]
            with self._exchange(is_last=number == len(mine) - 1):
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    prediction = forward(
                        self._observe(batch, offsets), batch.actions_BKA, batch.is_pad_BK,
                        None if noise_BZ is None else noise_BZ[part],
                    )  # fmt: skip
                losses = self._losses(prediction, batch, num_valid)
                # Of processes, gradients are averaged; losses are shares of a sum.
                (losses["train/loss"] * self.group.size).backward()  # type: ignore[no-untyped-call]
            sums = {name: sums[name] + loss.detach() if sums else loss.detach() for name, loss in losses.items()}
        return sums

    def _losses(self, prediction: Prediction, batch: Batch, num_valid: Tensor) -> dict[str, Tensor]:
        settings = self.config.trainer
        l1 = masked_l1(prediction.actions_BKA.float(), batch.actions_BKA, batch.is_pad_BK, num_valid)
        if prediction.mean_BZ is None or prediction.logvar_BZ is None:
            return {"train/loss": l1, "train/l1_prior": l1}
        kl = kl_divergence(prediction.mean_BZ.float(), prediction.logvar_BZ.float(), settings.batch_size)
        return {"train/loss": l1 + settings.kl_weight * kl, "train/l1_posterior": l1, "train/kl": kl}

    def _observe(self, batch: Batch, offsets_BC2: Tensor | None = None) -> Observation:
        images_BCHW3 = batch.images_BCHW3
        if images_BCHW3 is not None and offsets_BC2 is not None:
            images_BCHW3 = random_shift(images_BCHW3, self.config.trainer.shift_px, offsets_BC2)
        return Observation(states_BS=self.normalizer(batch.states_BS), tasks_B=batch.tasks_B, images_BCHW3=images_BCHW3)

    def _exchange(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Exchange gradients with the other processes after the last part only."""
        return nullcontext() if self._synchronised is None or is_last else self._synchronised.no_sync()

    def dry_run(self) -> int:
        """Compute a gradient and forget it; return the floating-point operations of a step of this process.

        Raises:
            TrainingError: The device has no room for it.
        """
        on_gpu = [self.device] if self.device.type == "cuda" else []
        self.model.train()
        try:
            with torch.random.fork_rng(on_gpu):
                flops = count_flops(lambda: self._add_gradients(self.model))
        except torch.OutOfMemoryError as error:
            parts = self.config.compute.micro_batches
            raise TrainingError(
                f"A step of {self.config.trainer.batch_size} windows in {parts} parts does not fit on the GPU: "
                f"compute.micro_batches={2 * parts}"
            ) from error
        self.optimizer.zero_grad()
        return flops

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the L1 losses on the validation episodes: with z = 0 as in use and, of a CVAE, with its z.

        Takes nothing from torch's generator, so that how often one validates does not change what is learnt.
        """
        model = self.eval_model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        size = max(self.config.trainer.batch_size, 256) if not self.config.policy.sees_images else 64
        for steps_B in self.windows.val_steps.split(size):  # type: ignore[no-untyped-call]
            batch = self.windows.gather(steps_B)
            num_valid = (~batch.is_pad_BK).sum()
            embedded = model.embed(self._observe(batch))
            prior = posterior = masked_l1(model.decode(embedded, None), batch.actions_BKA, batch.is_pad_BK, num_valid)
            if self.config.policy.cvae_layers:
                mean_BZ, _ = model.encode_style(embedded, batch.actions_BKA, batch.is_pad_BK)
                predicted_BKA = model.decode(embedded, mean_BZ)
                posterior = masked_l1(predicted_BKA, batch.actions_BKA, batch.is_pad_BK, num_valid)
            sums += torch.stack([posterior * num_valid, prior * num_valid, num_valid.float()]).double().cpu()
        posterior_sum, prior_sum, num = sums.tolist()
        losses = {"val/l1": prior_sum / num}
        return losses | ({"val/l1_reconstruction": posterior_sum / num} if self.config.policy.cvae_layers else {})

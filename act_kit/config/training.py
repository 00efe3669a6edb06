"""Options of ``act train``."""

from __future__ import annotations

import dataclasses

from act_kit.config.policy import ACTConfig, PolicyConfig
from act_kit.config.simulation import RolloutConfig, SimConfig
from act_kit.options import Options, option, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkingConfig(Options, group="chunking"):
    """Action chunking: selection of the actions to execute from predicted chunks.

    Attributes:
        n_action_steps: Actions of a chunk executed before the next query. Ignored with ``temporal_ensemble``.
        temporal_ensemble: Query at every step and average the predictions of all chunks for it (temporal
            ensembling).
        temporal_ensemble_coeff: m in the weights exp(-m i), i = 0 the oldest prediction.
    """

    n_action_steps: int = option(2, min=1, max=500)
    temporal_ensemble: bool = False
    temporal_ensemble_coeff: float = option(0.01, min=-1, max=100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig(Options, group="trainer"):
    """Optimization of the model.

    Attributes:
        steps: Gradient steps; 0 = ``steps_per_root`` times the square root of the number of steps in the data.
        steps_per_root: Default number of gradient steps, divided by that square root: with more data more steps, but
            fewer for each chunk.
        batch_size: Chunks per step, over all processes.
        lr: Peak learning rate of AdamW, after a linear warm-up and before a cosine decay to 0.
        warmup_fraction: Fraction of the steps with a rising learning rate.
        weight_decay: Weight decay of AdamW.
        grad_clip: Largest norm of the gradient.
        shift_px: Largest random shift of images, in pixels.
        ema_decay: Decay of the moving average of the weights that becomes the policy, such as 0.999; 0 = no
            average.
        seed: Seed of the initial weights, the batches, the latent noise and the validation split.
        max_share_after_success: Largest fraction of each task's samples that begin after the first success of their
            episode, where the demonstrator holds.
        val_fraction: Fraction of each dataset's episodes kept for validation, at least one episode.
        log_every: Steps between two records of the training losses.
        validate_every: Steps between two validations; each also saves the checkpoint ``last``; 0 = a tenth of all.
        stall_timeout_s: Longest duration of a step or rollout before the run is stopped.
    """

    steps: int = option(0, min=0, flag="--steps")
    steps_per_root: float = option(75.0, above=0)
    batch_size: int = option(64, min=1)
    lr: float = option(0.001, above=0)
    warmup_fraction: float = option(0.1, above=0, below=1)
    weight_decay: float = option(0.0001, min=0)
    grad_clip: float = option(10.0, above=0)
    shift_px: int = option(4, min=0)
    ema_decay: float = option(0.0, min=0, below=1)
    seed: int = option(0, min=0, flag="--seed")
    max_share_after_success: float = option(0.25, min=0, max=1)
    val_fraction: float = option(0.1, above=0, max=0.5)
    log_every: int = option(50, min=1)
    validate_every: int = option(0, min=0)
    stall_timeout_s: float = option(600.0, above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(Options, group="compute"):
    """Computation of a gradient step; changes its numbers by rounding at most.

    Attributes:
        precision: float32, bfloat16 (matrix products only; weights and losses stay float32) or auto (bfloat16
            on GPU).
        compile: on, off or auto (on with a GPU): ``torch.compile``, which takes about a minute.
        image_storage: Storage of images in training: device, disk (an uncompressed copy) or auto (device if
            they fit).
        micro_batches: Number of parts of a batch, computed in turn, for a device too small for a whole batch.
    """

    precision: str = option("auto", choices=("auto", "float32", "bfloat16"))
    compile: str = option("auto", choices=("auto", "on", "off"))
    image_storage: str = option("auto", choices=("auto", "device", "disk"))
    micro_batches: int = option(1, min=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig(Options, group="selection"):
    """Rollouts during training that select the best checkpoint.

    Attributes:
        num_evaluations: Number of evaluations, spaced evenly over the second half of the steps, to the end; 0 =
            none.
        episodes: Episodes per task and evaluation. Their initial states are the same every time and never those
            of ``act eval``.
        max_episodes: Largest number of episodes of an evaluation, so that a policy of many tasks has fewer per task;
            0 = no limit.
    """

    num_evaluations: int = option(10, min=0)
    episodes: int = option(20, min=1)
    max_episodes: int = option(0, min=0)

    def episodes_per_task(self, num_tasks: int) -> int:
        """Return the number of episodes per task and evaluation of a policy of several tasks."""
        most = self.max_episodes // num_tasks if self.max_episodes else self.episodes
        return max(1, min(self.episodes, most))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Options that, with the data, determine a trained policy.

    Attributes:
        policy: The model, its inputs and its sizes.
        chunking: Action chunking: selection of the actions to execute from predicted chunks.
        trainer: Optimization of the model.
        compute: Computation of a gradient step; changes its numbers by rounding at most.
        selection: Rollouts during training that select the best checkpoint.
        sim: Simulation.
        rollout: Parallel rollouts of a policy; the results do not depend on it.
        init_from: Run or checkpoint whose weights and normalizer training begins with; "" = random weights.
        wandb_project: Weights & Biases project that also gets the records of ``metrics.jsonl``; "" = none.
    """

    policy: PolicyConfig = ACTConfig()
    chunking: ChunkingConfig = ChunkingConfig()
    trainer: TrainerConfig = TrainerConfig()
    compute: ComputeConfig = ComputeConfig()
    selection: SelectionConfig = SelectionConfig()
    sim: SimConfig = SimConfig()
    rollout: RolloutConfig = RolloutConfig()
    init_from: str = option("", flag="--init-from")
    wandb_project: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.chunking.n_action_steps <= self.policy.chunk_size,
            f"chunking.n_action_steps={self.chunking.n_action_steps}: expected at most "
            f"policy.chunk_size={self.policy.chunk_size}.",
        )
        require(
            self.policy.backbone != "keypoints" or not self.policy.sees_images or self.trainer.shift_px == 0,
            f"trainer.shift_px={self.trainer.shift_px} with policy.backbone=keypoints: in shifted images, things are "
            "not where the cameras project them. Fix: trainer.shift_px=0",
        )

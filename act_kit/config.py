"""Options of every verb, each declared once with its default, meaning, range and flag.

:mod:`act_kit.overrides` composes them from presets and the command line.
"""

from __future__ import annotations

import dataclasses

from act_kit.options import Options, arguments_of, group, option, require

ENGINES = ("fast", "reference")
"""Simulation engines; see :mod:`act_kit.sim.simulator`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimConfig(Options, group="sim"):
    """Simulation."""

    engine: str = option(
        "fast",
        "fast, or reference (Meta-World's own code, several times slower). Both give the same numbers.",
        choices=ENGINES,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(Options, group="rollout"):
    """Parallel rollouts of a policy; the results do not depend on it."""

    num_envs: int = option(0, "Number of environments that run at the same time; 0 = automatic.", min=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeleopConfig(Options, group="teleop"):
    """Teleoperation in a browser."""

    operator: str = option(
        "",
        'Name of the operator, recorded in every episode\'s source; "" for the login name.',
        flag="--operator",
    )
    cameras: tuple[str, ...] = option(
        ("corner4",), "Cameras shown side by side; key directions are relative to the first one."
    )
    size_px: int = option(336, "Height and width of each image.", min=64, max=1024)
    rate_hz: int = option(20, "Steps per second of real time; simulated time has 80.", min=1, max=80)
    speed: float = option(
        0.5,
        "Hand speed while a key is held, as a fraction of an action's maximum, 0.01 m per step.",
        above=0,
        max=1,
    )
    port: int = option(8765, "Port of the page, on this machine only; 0 = any free port.", min=0, max=65535)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.operator) <= 100 and (not self.operator or self.operator.isprintable()),
            f"teleop.operator={self.operator[:100]!r}: expected up to 100 printable characters.",
        )
        require(bool(self.cameras), "teleop.cameras=[]: expected at least one. Fix: teleop.cameras=[corner4]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaggerConfig(Options, group="dagger"):
    """Options of the demonstrator ``policy``: the policy acts and the scripted expert labels its states (DAgger)."""

    run: str = option("", "Run or checkpoint of the policy.")
    expert_first: float = option(
        0.5, "Probability that the expert acts in the next segment, in the first attempt.", min=0, max=1
    )
    expert_last: float = option(
        0.5, "The same in the last attempt; linear in between. Lower values collected worse data.", min=0, max=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(Options, group="replay"):
    """Options of the demonstrator ``replay``, which executes another dataset's actions open loop."""

    dataset: str = option("", "Folder of the dataset.")
    init_perturbation: float = option(
        0.0,
        "With replay: largest shift of the initial states in each dimension, in meters; 0 = unchanged.",
        min=0,
        below=1,
        flag="--init-perturbation",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig(Options):
    """Options that determine a dataset's bytes."""

    task: str = option(
        "pick-place-v3",
        "Meta-World task; on the command line also several tasks (a,b) or a benchmark (MT10, MT50, …).",
        flag="--task",
    )
    n: int = option(50, "Number of demonstrations to keep.", min=1, flag="--n")
    seed: int = option(0, "Seed of the initial states and the noise.", min=0, flag="--seed")
    init_distribution: str = option(
        "uniform", "Initial-state distribution: uniform, sobol, grid or mt1.", flag="--init-distribution"
    )
    num_init_states: int = option(
        0,
        "Number of distinct initial states, reused in turn; 0 = a new one per attempt.",
        min=0,
        flag="--num-init-states",
    )
    demonstrator: str = option(
        "scripted",
        "scripted; teleop, by hand in a browser; policy, labeled by the scripted expert (DAgger); or replay, the "
        "actions of a dataset.",
        flag="--demonstrator",
    )
    noise: float = option(
        0.0,
        "Standard deviation of the noise on the executed action (DART), in action units: -1 to 1, 0.01 m per step.",
        min=0,
        max=1,
        flag="--noise",
    )
    steps_after_success: int = option(
        10, "Steps recorded after the first success, which in some tasks is soon undone.", min=0, max=499
    )
    rewards: bool = option(False, "Also record Meta-World's dense reward.")
    dagger: DaggerConfig = group(DaggerConfig)
    replay: ReplayConfig = group(ReplayConfig)
    sim: SimConfig = group(SimConfig)
    teleop: TeleopConfig = group(TeleopConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.demonstrator == "teleop" and self.noise),
            f"noise={self.noise}: the operator sees the executed actions and corrects for noise. Fix: leave noise out.",
        )
        for name, key, source, expected in (
            ("policy", "dagger.run", self.dagger.run, "a run or checkpoint"),
            ("replay", "replay.dataset", self.replay.dataset, "a dataset"),
        ):
            require(
                bool(source) or self.demonstrator != name,
                f"--demonstrator {name} has no source: expected {expected}. Fix: --source PATH",
            )
            require(
                not source or self.demonstrator == name,
                f"{key}={source} belongs to --demonstrator {name}, not to {self.demonstrator}.",
            )
        is_replay = self.demonstrator == "replay"
        require(
            not is_replay or (self.init_distribution == "uniform" and not self.num_init_states),
            "demonstrator=replay: the initial states are the dataset's, optionally with --init-perturbation. Fix: "
            "leave out --init-distribution and --num-init-states.",
        )
        require(
            is_replay or not self.replay.init_perturbation,
            "replay.init_perturbation: only --demonstrator replay perturbs initial states.",
        )

    @property
    def keeps_failures(self) -> bool:
        """True if failed attempts are kept, as in DAgger, where the expert labels the policy's mistakes."""
        return self.demonstrator == "policy"

    @property
    def command(self) -> str:
        """Command that collects the same bytes, for any output folder and number of processes."""
        return f"act collect {arguments_of(self, without=('sim', 'teleop'))}".rstrip()


INPUTS = ("state", "image+proprio", "image+state")
"""Inputs of a policy; see :class:`PolicyConfig`."""

BACKBONES = ("resnet18", "small")
"""Image encoders; see :mod:`act_kit.policies.vision`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(Options, group="policy"):
    """Inputs and sizes of an ACT model. The limits refuse a damaged file before memory is allocated."""

    inputs: str = option(
        "state",
        "state (hand, gripper, objects and goal), image+proprio (images, hand and gripper, which a real robot has) or "
        "image+state.",
        choices=INPUTS,
    )
    cameras: tuple[str, ...] = option((), "Cameras of the images; none for state.")
    backbone: str = option(
        "resnet18", "resnet18, or small (four convolutions), for 64 px and a CPU.", choices=BACKBONES
    )
    backbone_weights: str = option(
        "",
        "File with weights of a ResNet-18 under torchvision's names, whose batch statistics are then frozen; "
        '"" for random weights with group normalization.',
    )
    task_embeddings: str = option(
        "",
        "File with an embedding per task (for example of its sentence) of a multi-task policy; "
        '"" to learn the embeddings.',
    )
    chunk_size: int = option(16, "Number of actions predicted at once, K; an episode has 500 steps.", min=1, max=500)
    dim_model: int = option(96, "Width of the tokens, D; a multiple of ``num_heads``.", min=1, max=8192)
    dim_feedforward: int = option(384, "Width of the hidden layer after each attention.", min=1, max=65536)
    num_heads: int = option(4, "Heads of each attention.", min=1, max=256)
    encoder_layers: int = option(1, "Depth of the observation encoder.", min=1, max=64)
    decoder_layers: int = option(1, "Depth of the chunk decoder.", min=1, max=64)
    cvae_layers: int = option(
        1, "Depth of the CVAE encoder, used in training only; 0 for a model without a latent.", min=0, max=64
    )
    latent_dim: int = option(32, "Size of the latent z.", min=1, max=4096)
    dropout: float = option(0.0, "Dropout probability of every layer, in training.", min=0, below=1)

    @property
    def sees_images(self) -> bool:
        """True if images are among the inputs."""
        return self.inputs != "state"

    @property
    def sees_state(self) -> bool:
        """True if objects and goal are among the inputs."""
        return self.inputs != "image+proprio"

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = 4 if self.sees_images else 2
        require(
            self.dim_model % self.num_heads == 0 and self.dim_model % factor == 0,
            f"policy.dim_model={self.dim_model}: expected a multiple of {factor} and of "
            f"policy.num_heads={self.num_heads}.",
        )
        require(
            bool(self.cameras) == self.sees_images and len(set(self.cameras)) == len(self.cameras),
            f"policy.cameras=[{','.join(self.cameras)}] with policy.inputs={self.inputs}: expected one or more "
            "different cameras for images, such as policy.cameras=[corner4], and none for states.",
        )
        require(
            not self.backbone_weights or (self.sees_images and self.backbone == "resnet18"),
            "policy.backbone_weights: expected a policy with images and policy.backbone=resnet18.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkingConfig(Options, group="chunking"):
    """Action chunking: selection of the actions to execute from predicted chunks."""

    n_action_steps: int = option(
        4,
        "Actions of a chunk executed before the next query. Ignored with ``temporal_ensemble``.",
        min=1,
        max=500,
    )
    temporal_ensemble: bool = option(
        False,
        "Query at every step and average the predictions of all chunks for it (temporal ensembling).",
    )
    temporal_ensemble_coeff: float = option(
        0.01, "m in the weights exp(-m i), i = 0 the oldest prediction.", min=-1, max=100
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig(Options, group="trainer"):
    """Optimization of the model."""

    steps: int = option(3500, "Gradient steps; the preset of the policy sets them.", min=1, flag="--steps")
    batch_size: int = option(64, "Chunks per step, over all processes.", min=1)
    lr: float = option(
        0.001, "Peak learning rate of AdamW, after a linear warm-up and before a cosine decay to 0.", above=0
    )
    warmup_fraction: float = option(0.1, "Fraction of the steps with a rising learning rate.", above=0, below=1)
    weight_decay: float = option(0.0001, "Weight decay of AdamW.", min=0)
    grad_clip: float = option(10.0, "Largest norm of the gradient.", above=0)
    kl_weight: float = option(10.0, "Weight of the KL term in the loss.", min=0)
    shift_px: int = option(4, "Largest random shift of images, in pixels.", min=0)
    ema_decay: float = option(
        0.0,
        "Decay of the moving average of the weights that becomes the policy, such as 0.999; 0 = no average.",
        min=0,
        below=1,
    )
    seed: int = option(
        0, "Seed of the initial weights, the batches, the latent noise and the validation split.", min=0, flag="--seed"
    )
    val_fraction: float = option(
        0.1,
        "Fraction of each dataset's episodes kept for validation, at least one episode.",
        above=0,
        max=0.5,
    )
    log_every: int = option(50, "Steps between two records of the training losses.", min=1)
    validate_every: int = option(350, "Steps between two validations; each also saves the checkpoint ``last``.", min=1)
    stall_timeout_s: float = option(600.0, "Longest duration of a step or rollout before the run is stopped.", above=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(Options, group="compute"):
    """Computation of a gradient step; changes its numbers by rounding at most."""

    precision: str = option(
        "auto",
        "float32, bfloat16 (matrix products only; weights and losses stay float32) or auto (bfloat16 on GPU).",
        choices=("auto", "float32", "bfloat16"),
    )
    compile: str = option(
        "auto",
        "on, off or auto (on with a GPU): ``torch.compile``, which takes about a minute.",
        choices=("auto", "on", "off"),
    )
    image_storage: str = option(
        "auto",
        "Storage of images in training: device, disk (an uncompressed copy) or auto (device if they fit).",
        choices=("auto", "device", "disk"),
    )
    micro_batches: int = option(
        1, "Number of parts of a batch, computed in turn, for a device too small for a whole batch.", min=1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig(Options, group="selection"):
    """Rollouts during training that select the best checkpoint."""

    num_evaluations: int = option(
        10,
        "Number of evaluations, spaced evenly over the second half of the steps, to the end; 0 = none.",
        min=0,
    )
    episodes: int = option(
        20,
        "Episodes per task and evaluation. Their initial states are the same every time and never those of "
        "``act eval``.",
        min=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """Options that, with the data, determine a trained policy."""

    policy: PolicyConfig = group(PolicyConfig)
    chunking: ChunkingConfig = group(ChunkingConfig)
    trainer: TrainerConfig = group(TrainerConfig)
    compute: ComputeConfig = group(ComputeConfig)
    selection: SelectionConfig = group(SelectionConfig)
    sim: SimConfig = group(SimConfig)
    rollout: RolloutConfig = group(RolloutConfig)
    init_from: str = option(
        "",
        'Run or checkpoint whose weights and normalizer training begins with; "" = random weights.',
        flag="--init-from",
    )
    wandb_project: str = option(
        "", 'Weights & Biases project that also gets the records of ``metrics.jsonl``; "" = none.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.chunking.n_action_steps <= self.policy.chunk_size,
            f"chunking.n_action_steps={self.chunking.n_action_steps}: expected at most "
            f"policy.chunk_size={self.policy.chunk_size}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(Options):
    """Options of an evaluation."""

    episodes: int = option(
        100, "Number of episodes of each task, each from its own initial state.", min=1, flag="--episodes"
    )
    seed: int = option(0, "Seed of the initial states.", min=0, flag="--seed")
    demonstrated_episodes: int = option(20, "Number of baseline episodes from demonstrated initial states.", min=0)
    baseline_episodes: int = option(
        20, "Number of episodes of each baseline: the expert, zero actions and random actions.", min=0
    )
    num_videos: int = option(6, "Number of videos with ``--record-video``, failures first.", min=0)
    video_size_px: int = option(320, "Height and width of the videos.", min=64, max=1024, multiple_of=16)
    video_fps: int = option(20, "Frame rate of the videos.", choices=(5, 8, 10, 16, 20, 40, 80))
    video_camera: str = option("corner4", "Camera of the videos.")
    sim: SimConfig = group(SimConfig)
    rollout: RolloutConfig = group(RolloutConfig)

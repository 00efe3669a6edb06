"""Options of every verb as frozen dataclasses, with their meaning and the check of their values.

:mod:`act_kit.overrides` builds them from YAML and the command line.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from act_kit.errors import ConfigError, did_you_mean
from act_kit.files import quoted

ENGINES = ("fast", "reference")
"""Simulation engines; see :mod:`act_kit.sim.simulator`."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _convert(option: dataclasses.Field[Any], value: Any) -> Any:
    """Convert a value to its option's declared type, because NumPy's numbers cannot be written to a file."""
    if option.type == "tuple[str, ...]":
        is_valid = isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
        _require(is_valid, f"{option.name}={value!r}: expected strings, such as ['corner4'].")
        return tuple(value)
    if option.type == "int":
        is_valid = not isinstance(value, bool) and isinstance(value, numbers.Integral)
        _require(is_valid, f"{option.name}={value!r}: expected an integer.")
        return int(value)
    if option.type == "float":
        is_valid = not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
        _require(is_valid, f"{option.name}={value!r}: expected a finite number.")
        return float(value)
    expected = {"str": "a string", "bool": "True or False"}.get(str(option.type), f"a {option.type}")
    kind = PolicyConfig if option.type == "PolicyConfig" else type(option.default)
    _require(isinstance(value, kind), f"{option.name}={value!r}: expected {expected}.")
    return value


class _Options:
    """Base class that converts every option to its declared type, or raises an error."""

    def __post_init__(self) -> None:
        options: Any = self
        for option in dataclasses.fields(options):
            object.__setattr__(self, option.name, _convert(option, getattr(self, option.name)))


def _require_one_of(known: Sequence[str], key: str, value: str) -> None:
    _require(value in known, f"{key}={value}: choose from: {', '.join(known)}.{did_you_mean(value, known)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimConfig(_Options):
    """Simulation.

    Attributes:
        engine: fast, or reference (Meta-World's own code, several times slower). Both give the same numbers.
    """

    engine: str = "fast"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of(ENGINES, "sim.engine", self.engine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(_Options):
    """Parallel rollouts of a policy; the results do not depend on it.

    Attributes:
        num_envs: Number of environments that run at the same time; 0 = automatic.
    """

    num_envs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_envs >= 0, f"rollout.num_envs={self.num_envs}: expected 0 or more; 0 = automatic.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeleopConfig(_Options):
    """Teleoperation in a browser.

    Attributes:
        operator: Name of the operator, recorded in every episode's source; "" for the login name.
        cameras: Cameras shown side by side; key directions are relative to the first one.
        size_px: Height and width of each image.
        rate_hz: Steps per second of real time; simulated time has 80.
        speed: Hand speed while a key is held, as a fraction of an action's maximum, 0.01 m per step.
        port: Port of the page, on this machine only; 0 = any free port.
    """

    operator: str = ""
    cameras: tuple[str, ...] = ("corner4",)
    size_px: int = 336
    rate_hz: int = 20
    speed: float = 0.5
    port: int = 8765

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            len(self.operator) <= 100 and (not self.operator or self.operator.isprintable()),
            f"teleop.operator={self.operator[:100]!r}: expected up to 100 printable characters.",
        )
        _require(bool(self.cameras), "teleop.cameras=[]: expected at least one. Fix: teleop.cameras=[corner4]")
        _require(64 <= self.size_px <= 1024, f"teleop.size_px={self.size_px}: expected 64 to 1024.")
        _require(1 <= self.rate_hz <= 80, f"teleop.rate_hz={self.rate_hz}: expected 1 to 80.")
        _require(0 < self.speed <= 1, f"teleop.speed={self.speed}: expected more than 0, at most 1.")
        _require(0 <= self.port <= 65535, f"teleop.port={self.port}: expected 0 to 65535; 0 = any free port.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaggerConfig(_Options):
    """Options of the demonstrator ``policy``: the policy acts and the scripted expert labels its states (DAgger).

    Attributes:
        run: Run or checkpoint of the policy.
        expert_first, expert_last: Probability that the expert acts in the next segment, in the first and in the last
            attempt; linear in between.
    """

    run: str = ""
    expert_first: float = 0.5
    expert_last: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("expert_first", "expert_last"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"dagger.{name}={value}: expected a probability, 0 to 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(_Options):
    """Options of the demonstrator ``replay``, which executes another dataset's actions open loop.

    Attributes:
        dataset: Folder of the dataset.
        init_perturbation: Largest shift of the initial states in each dimension, in meters; 0 = unchanged.
    """

    dataset: str = ""
    init_perturbation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.init_perturbation < 1,
            f"replay.init_perturbation={self.init_perturbation}: expected meters, from 0 to less than 1.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig(_Options):
    """Options that determine a dataset's bytes.

    Attributes:
        task: Meta-World task.
        n: Number of episodes to keep.
        seed: Seed of the initial states and the noise.
        init_distribution: Initial-state distribution: uniform, sobol, grid or mt1.
        num_init_states: Number of distinct initial states, reused in turn; 0 = a new one per attempt.
        demonstrator: scripted, teleop, policy (labeled by the scripted expert) or replay.
        noise: Standard deviation of the noise on the executed action, in action units (0.01 m per step).
        steps_after_success: Steps recorded after the first success, which in some tasks is soon undone.
        rewards: Also record Meta-World's dense reward.
        dagger, replay: Options of the demonstrators policy and replay.
        sim: Simulation; the bytes do not depend on it.
        teleop: Options of the demonstrator teleop.
    """

    task: str = "pick-place-v3"
    n: int = 50
    seed: int = 0
    init_distribution: str = "uniform"
    num_init_states: int = 0
    demonstrator: str = "scripted"
    noise: float = 0.0
    steps_after_success: int = 10
    rewards: bool = False
    dagger: DaggerConfig = DaggerConfig()
    replay: ReplayConfig = ReplayConfig()
    sim: SimConfig = SimConfig()
    teleop: TeleopConfig = TeleopConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.n >= 1, f"n={self.n}: expected at least one demonstration.")
        _require(self.seed >= 0, f"seed={self.seed}: expected 0 or more.")
        _require(
            self.num_init_states >= 0,
            f"num_init_states={self.num_init_states}: expected 0 or more; 0 = a new one per attempt.",
        )
        _require(0 <= self.noise <= 1, f"noise={self.noise}: expected 0 to 1; an action ranges from -1 to 1.")
        _require(
            0 <= self.steps_after_success <= 499,
            f"steps_after_success={self.steps_after_success}: expected 0 to 499.",
        )
        _require(
            not (self.demonstrator == "teleop" and self.noise),
            f"noise={self.noise}: the operator sees the executed actions and corrects for noise. Fix: leave noise out.",
        )
        for name, key, source in (
            ("policy", "dagger.run", self.dagger.run),
            ("replay", "replay.dataset", self.replay.dataset),
        ):
            expected = "a run or checkpoint" if name == "policy" else "a dataset"
            _require(
                bool(source) or self.demonstrator != name,
                f"--demonstrator {name} has no source: expected {expected}. Fix: --source PATH",
            )
            _require(
                not source or self.demonstrator == name,
                f"{key}={source} belongs to --demonstrator {name}, not to {self.demonstrator}.",
            )
        if self.demonstrator == "replay":
            _require(
                self.init_distribution == "uniform" and not self.num_init_states,
                "demonstrator=replay: the initial states are the dataset's, optionally with --init-perturbation. Fix: "
                "leave out --init-distribution and --num-init-states.",
            )
        else:
            _require(
                not self.replay.init_perturbation,
                "replay.init_perturbation: only --demonstrator replay perturbs initial states.",
            )

    @property
    def keeps_failures(self) -> bool:
        """True if failed attempts are kept, as in DAgger, where the expert labels the policy's mistakes."""
        return self.demonstrator == "policy"

    @property
    def command(self) -> str:
        """Command that collects the same bytes, for any output folder and number of processes."""
        parts = [f"act collect --task {self.task} --n {self.n} --seed {self.seed}"]
        if self.init_distribution != "uniform":
            parts.append(f"--init-distribution {self.init_distribution}")
        if self.num_init_states:
            parts.append(f"--num-init-states {self.num_init_states}")
        if self.noise:
            parts.append(f"--noise {self.noise:g}")
        if self.dagger.run:
            parts.append(f"--demonstrator policy --source {quoted(self.dagger.run)}")
            parts.append(
                f"dagger.expert_first={self.dagger.expert_first!r} dagger.expert_last={self.dagger.expert_last!r}"
            )
        if self.replay.dataset:
            parts.append(f"--demonstrator replay --source {quoted(self.replay.dataset)}")
        if self.replay.init_perturbation:
            parts.append(f"--init-perturbation {self.replay.init_perturbation!r}")
        parts.append(f"steps_after_success={self.steps_after_success}")
        if self.rewards:
            parts.append("rewards=true")
        if self.demonstrator == "teleop":
            parts.append("--demonstrator teleop")
        return " ".join(parts)


INPUTS = ("state", "image+proprio", "image+state")
"""Inputs of a policy; see :class:`PolicyConfig`."""

BACKBONES = ("resnet18", "small")
"""Image encoders; see :mod:`act_kit.policies.vision`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(_Options):
    """Options of every chunk model; each model adds its own in a subclass, which is found by ``name``.

    Attributes:
        name: Name of the model: act, or one that a module of the user registers.
        inputs: state (hand, gripper, objects and goal), image+proprio (images, hand and gripper, which a real robot
            has) or image+state.
        cameras: Cameras of the images; none for state.
        backbone: resnet18, or small (four convolutions), for 64 px and a CPU.
        backbone_weights: File with weights of a ResNet-18 under torchvision's names, whose batch statistics are then
            frozen; "" for random weights with group normalization.
        task_embeddings: File with an embedding per task (for example of its sentence) of a multi-task policy; "" to
            learn the embeddings.
        chunk_size: Number of actions predicted at once, K.

    Class attributes:
        kinds: Classes of options by name.
        training_only: Options that matter in training only; a policy can be trained further with other values.
        far_factors: Factors below and above its preset beyond which an option may cause a low success rate.
    """

    kinds: ClassVar[dict[str, type[PolicyConfig]]] = {}
    training_only: ClassVar[tuple[str, ...]] = ()
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {}

    name: str = ""
    inputs: str = "state"
    cameras: tuple[str, ...] = ()
    backbone: str = "resnet18"
    backbone_weights: str = ""
    task_embeddings: str = ""
    chunk_size: int = 16

    def __init_subclass__(cls) -> None:
        PolicyConfig.kinds[cls.name] = cls

    @staticmethod
    def find(name: str) -> type[PolicyConfig]:
        """Return the class of options of a model, or raise :class:`ConfigError` if none of that name is registered."""
        _require_one_of(list(PolicyConfig.kinds), "policy.name", name)
        return PolicyConfig.kinds[name]

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
        _require(self.name == type(self).name, f"policy.name={self.name}: expected {type(self).name}.")
        for name, known in (("inputs", INPUTS), ("backbone", BACKBONES)):
            _require_one_of(known, f"policy.{name}", getattr(self, name))
        _require(1 <= self.chunk_size <= 500, f"policy.chunk_size={self.chunk_size}: expected 1 to 500.")
        _require(
            bool(self.cameras) == self.sees_images and len(set(self.cameras)) == len(self.cameras),
            f"policy.cameras=[{','.join(self.cameras)}] with policy.inputs={self.inputs}: expected one or more "
            "different cameras for images, such as policy.cameras=[corner4], and none for states.",
        )
        _require(
            not self.backbone_weights or (self.sees_images and self.backbone == "resnet18"),
            "policy.backbone_weights: expected a policy with images and policy.backbone=resnet18.",
        )


_ACT_SIZES = {
    "dim_model": 8192,
    "dim_feedforward": 65536,
    "num_heads": 256,
    "encoder_layers": 64,
    "decoder_layers": 64,
    "cvae_layers": 64,
    "latent_dim": 4096,
}
"""Largest sizes of a model, so that a damaged file with larger ones is refused before memory is allocated."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACTConfig(PolicyConfig):
    """Options of ACT.

    Attributes:
        dim_model: Width of the tokens, D; a multiple of ``num_heads``.
        dim_feedforward: Width of the hidden layer after each attention.
        num_heads: Heads of each attention.
        encoder_layers, decoder_layers: Depth of the observation encoder and of the chunk decoder.
        cvae_layers: Depth of the CVAE encoder, used in training only; 0 for a model without a latent.
        latent_dim: Size of the latent z.
        kl_weight: Weight of the KL term in the loss.
        dropout: Dropout probability of every layer, in training.
    """

    training_only: ClassVar[tuple[str, ...]] = ("kl_weight", "dropout")
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim_model": (6, math.inf),
        "dim_feedforward": (12, math.inf),
        "kl_weight": (100, 10),
    }

    name: str = "act"
    dim_model: int = 96
    dim_feedforward: int = 384
    num_heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 1
    cvae_layers: int = 1
    latent_dim: int = 32
    kl_weight: float = 10.0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, largest in _ACT_SIZES.items():
            smallest, value = 0 if name == "cvae_layers" else 1, getattr(self, name)
            _require(smallest <= value <= largest, f"policy.{name}={value}: expected {smallest} to {largest}.")
        _require(self.kl_weight >= 0, f"policy.kl_weight={self.kl_weight}: expected 0 or more.")
        _require(0 <= self.dropout < 1, f"policy.dropout={self.dropout}: expected 0 to less than 1.")
        factor = 4 if self.sees_images else 2
        _require(
            self.dim_model % self.num_heads == 0 and self.dim_model % factor == 0,
            f"policy.dim_model={self.dim_model}: expected a multiple of {factor} and of "
            f"policy.num_heads={self.num_heads}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkingConfig(_Options):
    """Action chunking: selection of the actions to execute from predicted chunks.

    Attributes:
        n_action_steps: Actions of a chunk executed before the next query. Ignored with ``temporal_ensemble``.
        temporal_ensemble: Query at every step and average the predictions of all chunks for it (temporal ensembling).
        temporal_ensemble_coeff: m in the weights exp(-m i), i = 0 the oldest prediction.
    """

    n_action_steps: int = 4
    temporal_ensemble: bool = False
    temporal_ensemble_coeff: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(1 <= self.n_action_steps <= 500, f"chunking.n_action_steps={self.n_action_steps}: expected 1 to 500.")
        _require(
            -1 <= self.temporal_ensemble_coeff <= 100,
            f"chunking.temporal_ensemble_coeff={self.temporal_ensemble_coeff}: expected -1 to 100.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig(_Options):
    """Optimization of the model.

    Attributes:
        steps: Gradient steps.
        batch_size: Chunks per step, over all processes.
        lr: Peak learning rate of AdamW, after a linear warm-up and before a cosine decay to 0.
        warmup_fraction: Fraction of the steps with a rising learning rate.
        weight_decay: Weight decay of AdamW.
        grad_clip: Largest norm of the gradient.
        shift_px: Largest random shift of images, in pixels.
        ema_decay: Decay of the moving average of the weights that becomes the policy; 0 = no average.
        seed: Seed of the initial weights, the batches, the latent noise and the validation split.
        val_fraction: Fraction of each dataset's episodes kept for validation, at least one episode.
        log_every: Steps between two records of the training losses.
        validate_every: Steps between two validations; each also saves the checkpoint ``last``.
        stall_timeout_s: Longest duration of a step or rollout before the run is stopped.
    """

    steps: int = 3500
    batch_size: int = 64
    lr: float = 0.001
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0001
    grad_clip: float = 10.0
    shift_px: int = 4
    ema_decay: float = 0.0
    seed: int = 0
    val_fraction: float = 0.1
    log_every: int = 50
    validate_every: int = 350
    stall_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch_size", "log_every", "validate_every"):
            _require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)}: expected at least 1.")
        for name in ("lr", "grad_clip", "stall_timeout_s"):
            _require(getattr(self, name) > 0, f"trainer.{name}={getattr(self, name)}: expected more than 0.")
        for name in ("weight_decay", "shift_px", "seed"):
            _require(getattr(self, name) >= 0, f"trainer.{name}={getattr(self, name)}: expected 0 or more.")
        _require(
            0 < self.val_fraction <= 0.5,
            f"trainer.val_fraction={self.val_fraction}: expected more than 0, at most 0.5.",
        )
        _require(
            0 < self.warmup_fraction < 1,
            f"trainer.warmup_fraction={self.warmup_fraction}: expected more than 0, less than 1.",
        )
        _require(0 <= self.ema_decay < 1, f"trainer.ema_decay={self.ema_decay}: expected 0 to less than 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(_Options):
    """Computation of a gradient step; changes its numbers by rounding at most.

    Attributes:
        precision: float32, bfloat16 (matrix products only; weights and losses stay float32) or auto (bfloat16 on GPU).
        compile: on, off or auto (on with a GPU): ``torch.compile``, which takes about a minute.
        image_storage: Storage of images in training: device, disk (an uncompressed copy) or auto (device if they fit).
        micro_batches: Number of parts of a batch, computed in turn, for a device too small for a whole batch.
    """

    precision: str = "auto"
    compile: str = "auto"
    image_storage: str = "auto"
    micro_batches: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("precision", ("auto", "float32", "bfloat16")),
            ("compile", ("auto", "on", "off")),
            ("image_storage", ("auto", "device", "disk")),
        ):
            _require_one_of(known, f"compute.{name}", getattr(self, name))
        _require(self.micro_batches >= 1, f"compute.micro_batches={self.micro_batches}: expected at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig(_Options):
    """Rollouts during training that select the best checkpoint.

    Attributes:
        num_evaluations: Number of evaluations, spaced evenly over the second half of the steps, to the end; 0 = none.
        episodes: Episodes per task and evaluation. Their initial states are the same every time and never those of
            ``act eval``.
    """

    num_evaluations: int = 10
    episodes: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_evaluations >= 0, f"selection.num_evaluations={self.num_evaluations}: expected 0 or more.")
        _require(self.episodes >= 1, f"selection.episodes={self.episodes}: expected at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(_Options):
    """Options that, with the data, determine a trained policy.

    Attributes:
        policy: The model, its inputs and its sizes.
        chunking: Action chunking.
        trainer: Optimization.
        compute: Computation of a gradient step.
        selection: Rollouts that select the best checkpoint.
        sim: Simulation.
        rollout: Parallel rollouts.
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
    init_from: str = ""
    wandb_project: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.chunking.n_action_steps <= self.policy.chunk_size,
            f"chunking.n_action_steps={self.chunking.n_action_steps}: expected at most "
            f"policy.chunk_size={self.policy.chunk_size}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(_Options):
    """Options of an evaluation.

    Attributes:
        episodes: Number of episodes, each from its own initial state.
        seed: Seed of the initial states.
        demonstrated_episodes: Number of baseline episodes from demonstrated initial states.
        baseline_episodes: Number of episodes of each baseline: the expert, zero actions and random actions.
        num_videos: Number of videos with ``--record-video``, failures first.
        video_size_px: Height and width of the videos.
        video_fps: Frame rate of the videos.
        video_camera: Camera of the videos.
        sim: Simulation.
        rollout: Parallel rollouts.
    """

    episodes: int = 100
    seed: int = 0
    demonstrated_episodes: int = 20
    baseline_episodes: int = 20
    num_videos: int = 6
    video_size_px: int = 320
    video_fps: int = 20
    video_camera: str = "corner4"
    sim: SimConfig = SimConfig()
    rollout: RolloutConfig = RolloutConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.episodes >= 1, f"episodes={self.episodes}: expected at least 1.")
        for name in ("seed", "demonstrated_episodes", "baseline_episodes", "num_videos"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: expected 0 or more.")
        _require(
            self.video_fps in (5, 8, 10, 16, 20, 40, 80),
            f"video_fps={self.video_fps}: choose from: 5, 8, 10, 16, 20, 40, 80.",
        )
        _require(
            64 <= self.video_size_px <= 1024 and self.video_size_px % 16 == 0,
            f"video_size_px={self.video_size_px}: expected 64 to 1024, a multiple of 16.",
        )

"""The options of every verb as frozen dataclasses, which say what they mean and which values make sense.

:mod:`act_kit.overrides` makes them from YAML and the command line.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

from act_kit.errors import ConfigError, did_you_mean
from act_kit.files import quoted

ENGINES = ("fast", "reference")
"""What can simulate; see :mod:`act_kit.sim.simulator`."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _as_declared(option: dataclasses.Field[Any], value: Any) -> Any:
    """Return a value as the type that an option is declared with; NumPy's numbers could not be written to a file."""
    if option.type == "tuple[str, ...]":
        is_right = isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)
        _require(is_right, f"{option.name}={value!r}: expected texts, such as ['corner4'].")
        return tuple(value)
    if option.type == "int":
        is_right = not isinstance(value, bool) and isinstance(value, numbers.Integral)
        _require(is_right, f"{option.name}={value!r}: expected an integer.")
        return int(value)
    if option.type == "float":
        is_right = not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
        _require(is_right, f"{option.name}={value!r}: expected a finite number.")
        return float(value)
    expected = {"str": "a text", "bool": "True or False"}.get(str(option.type), f"a {option.type}")
    _require(isinstance(value, type(option.default)), f"{option.name}={value!r}: expected {expected}.")
    return value


class _Options:
    """Options whose values have the types that they are declared with, as those from the command line have anyway."""

    def __post_init__(self) -> None:
        options: Any = self
        for option in dataclasses.fields(options):
            object.__setattr__(self, option.name, _as_declared(option, getattr(self, option.name)))


def _require_one_of(known: Sequence[str], key: str, value: str) -> None:
    _require(value in known, f"{key}={value}: there are {', '.join(known)}.{did_you_mean(value, known)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimConfig(_Options):
    """What simulates.

    Attributes:
        engine: fast, or reference (Meta-World's own code, several times slower). They give the same numbers.
    """

    engine: str = "fast"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_one_of(ENGINES, "sim.engine", self.engine)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(_Options):
    """How episodes of a policy are spread; decides nothing.

    Attributes:
        num_envs: Environments at the same time; 0 for as many as are worth it.
    """

    num_envs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_envs >= 0, f"rollout.num_envs={self.num_envs}: not negative; 0 for as many as are worth it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeleopConfig(_Options):
    """Demonstrating by hand, in a browser.

    Attributes:
        operator: Who demonstrates, which every episode's source names; "" for the name this user is logged in with.
        cameras: What is shown, side by side; directions are those of the first picture.
        size_px: Height and width of each picture.
        rate_hz: Steps a second, of which the simulation's own time has 80.
        speed: Of the hand while a key is held, as a share of what an action can ask for, 0.01 m a step.
        port: Of the page, on this machine only; 0 for any that is free.
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
            f"teleop.operator={self.operator[:100]!r}: up to 100 printable characters.",
        )
        _require(bool(self.cameras), "teleop.cameras=[]: name one or more, such as teleop.cameras=[corner4].")
        _require(64 <= self.size_px <= 1024, f"teleop.size_px={self.size_px}: 64 to 1024.")
        _require(1 <= self.rate_hz <= 80, f"teleop.rate_hz={self.rate_hz}: 1 to 80.")
        _require(0 < self.speed <= 1, f"teleop.speed={self.speed}: more than 0, at most 1.")
        _require(0 <= self.port <= 65535, f"teleop.port={self.port}: 0 to 65535; 0 for any that is free.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaggerConfig(_Options):
    """What the demonstrator ``policy`` does: the policy acts, and the scripted expert says what it would have done.

    Attributes:
        run: Run or checkpoint of the policy.
        expert_first, expert_last: Probability that the expert carries out the next stretch itself, in the first and in
            the last attempt; linear between them.
    """

    run: str = ""
    expert_first: float = 0.5
    expert_last: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("expert_first", "expert_last"):
            _require(0 <= getattr(self, name) <= 1, f"dagger.{name}={getattr(self, name)}: a probability, 0 to 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(_Options):
    """What the demonstrator ``replay`` does: another dataset's actions, without looking.

    Attributes:
        dataset: Its folder.
        init_perturbation: Metres by which starts are moved, up to so many in every dimension; 0 for the very same.
    """

    dataset: str = ""
    init_perturbation: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            0 <= self.init_perturbation < 1,
            f"replay.init_perturbation={self.init_perturbation}: metres, from 0 to less than 1.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig(_Options):
    """Everything that decides a dataset's bytes.

    Attributes:
        task: Meta-World task.
        n: Episodes to keep.
        seed: Of the starts and the noise.
        init_distribution: uniform, sobol, grid or mt1.
        num_init_states: Starts drawn, and then used over and over; 0 for a new one each time.
        demonstrator: Who demonstrates: scripted, policy (corrected by the scripted expert) or replay.
        noise: Standard deviation of the noise on the executed action, whose units are 0.01 m a step.
        steps_after_success: Steps recorded after the first success, which in some tasks is soon undone.
        rewards: Record Meta-World's dense reward too.
        dagger, replay: See there; each belongs to one demonstrator.
        sim: What simulates; decides nothing.
        teleop: How it is demonstrated by hand.
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
        _require(self.n >= 1, f"n={self.n}: collect at least one demonstration.")
        _require(self.seed >= 0, f"seed={self.seed}: a seed is not negative.")
        _require(
            self.num_init_states >= 0,
            f"num_init_states={self.num_init_states}: not negative; 0 for a new one each time.",
        )
        _require(0 <= self.noise <= 1, f"noise={self.noise}: from 0 to 1, the width of an action being 2.")
        _require(0 <= self.steps_after_success <= 499, f"steps_after_success={self.steps_after_success}: 0 to 499.")
        _require(
            not (self.demonstrator == "teleop" and self.noise),
            f"noise={self.noise}: who demonstrates by hand sees what is carried out, and answers it. Leave noise out.",
        )
        for name, key, made_from in (
            ("policy", "dagger.run", self.dagger.run),
            ("replay", "replay.dataset", self.replay.dataset),
        ):
            _require(
                bool(made_from) or self.demonstrator != name, f"--demonstrator {name} of what? Say so with --source."
            )
            _require(
                not made_from or self.demonstrator == name,
                f"{key}={made_from} belongs to --demonstrator {name}, not to {self.demonstrator}.",
            )
        if self.demonstrator == "replay":
            _require(
                self.init_distribution == "uniform" and not self.num_init_states,
                "demonstrator=replay: its starts are the dataset's, or --init-perturbation; leave out what else draws starts.",
            )
        else:
            _require(
                not self.replay.init_perturbation, "replay.init_perturbation: only --demonstrator replay moves starts."
            )

    @property
    def keeps_failures(self) -> bool:
        """Whether attempts that fail are kept too: what a policy does wrong is what is to be corrected."""
        return self.demonstrator == "policy"

    @property
    def command(self) -> str:
        """The command that collects these bytes, wherever it puts them and however many processes it uses."""
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
"""What a policy may see; see :class:`PolicyConfig`."""

BACKBONES = ("resnet18", "small")
"""What turns pictures into tokens; see :mod:`act_kit.policies.vision`."""


_MOST_OF_POLICY = {
    "chunk_size": 500,  # steps of an episode
    "dim_model": 8192,
    "dim_feedforward": 65536,
    "num_heads": 256,
    "encoder_layers": 64,
    "decoder_layers": 64,
    "cvae_layers": 64,
    "latent_dim": 4096,
}
"""The largest sizes of a model: what a damaged file says beyond takes no memory."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(_Options):
    """What an ACT model sees, and its sizes.

    Attributes:
        inputs: state (hand, gripper, objects and goal), image+proprio (pictures, hand and gripper: what a robot would
            have) or image+state.
        cameras: Of the pictures; none for state.
        backbone: resnet18, or small (four convolutions), for 64 px and a CPU.
        backbone_weights: File with weights of a ResNet-18 under torchvision's names, whose batch statistics then stay
            as they are; "" to begin at random, with group normalisation.
        task_embeddings: File with an embedding of each task (of its sentence, say) that tells tasks apart; "" to learn
            one. A policy of one task has none.
        chunk_size: Actions predicted at once, K.
        dim_model: Of all tokens, D; a multiple of ``num_heads``.
        dim_feedforward: Of the hidden layer between attentions.
        num_heads: Of every attention.
        encoder_layers, decoder_layers: Depth of the observation encoder and of the decoder of the chunk.
        cvae_layers: Depth of the training-time encoder of the latent style; 0 for a model without a latent.
        latent_dim: Of the latent style z.
        dropout: Of every layer, in training.
    """

    inputs: str = "state"
    cameras: tuple[str, ...] = ()
    backbone: str = "resnet18"
    backbone_weights: str = ""
    task_embeddings: str = ""
    chunk_size: int = 16
    dim_model: int = 96
    dim_feedforward: int = 384
    num_heads: int = 4
    encoder_layers: int = 1
    decoder_layers: int = 1
    cvae_layers: int = 1
    latent_dim: int = 32
    dropout: float = 0.0

    @property
    def sees_images(self) -> bool:
        """Whether pictures are among the inputs."""
        return self.inputs != "state"

    @property
    def sees_state(self) -> bool:
        """Whether objects and goal are among the inputs."""
        return self.inputs != "image+proprio"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("inputs", INPUTS), ("backbone", BACKBONES)):
            _require_one_of(known, f"policy.{name}", getattr(self, name))
        for name, most in _MOST_OF_POLICY.items():
            least = 0 if name == "cvae_layers" else 1
            _require(least <= getattr(self, name) <= most, f"policy.{name}={getattr(self, name)}: {least} to {most}.")
        _require(0 <= self.dropout < 1, f"policy.dropout={self.dropout}: from 0 to less than 1.")
        parts = 4 if self.sees_images else 2
        _require(
            self.dim_model % self.num_heads == 0 and self.dim_model % parts == 0,
            f"policy.dim_model={self.dim_model}: must be a multiple of {parts} and a multiple of "
            f"policy.num_heads={self.num_heads}.",
        )
        _require(
            bool(self.cameras) == self.sees_images and len(set(self.cameras)) == len(self.cameras),
            f"policy.cameras=[{','.join(self.cameras)}] with policy.inputs={self.inputs}: pictures need one or more "
            "different cameras, such as policy.cameras=[corner4], and states none.",
        )
        _require(
            not self.backbone_weights or (self.sees_images and self.backbone == "resnet18"),
            "policy.backbone_weights: only a policy with pictures and policy.backbone=resnet18 has a use for them.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkingConfig(_Options):
    """How predicted chunks become actions.

    Attributes:
        n_action_steps: Actions of a chunk carried out before the next query. Ignored with ``temporal_ensemble``.
        temporal_ensemble: Query at every step and average what all chunks say of it (temporal ensembling).
        temporal_ensemble_coeff: m in the weights exp(-m i), i = 0 the oldest prediction.
    """

    n_action_steps: int = 4
    temporal_ensemble: bool = False
    temporal_ensemble_coeff: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(1 <= self.n_action_steps <= 500, f"chunking.n_action_steps={self.n_action_steps}: 1 to 500.")
        _require(
            -1 <= self.temporal_ensemble_coeff <= 100,
            f"chunking.temporal_ensemble_coeff={self.temporal_ensemble_coeff}: a number, -1 to 100.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig(_Options):
    """How a model is fitted.

    Attributes:
        steps: Gradient steps.
        batch_size: Windows per step, of all processes together.
        lr: Peak learning rate of AdamW; it rises for ``warmup`` of the steps and falls to 0 along a cosine.
        warmup_fraction: Fraction of the steps.
        weight_decay: Of AdamW.
        grad_clip: Largest norm of the gradient.
        kl_weight: Of the KL term in the loss.
        shift_px: Pictures are shifted at random by up to so many pixels.
        ema_decay: Decay of the moving average of the weights that becomes the policy; 0 for the weights themselves.
        seed: Of the initial weights, the batches, the latent noise and the validation split.
        val_fraction: Of the episodes of each dataset, kept out of training, at least one.
        log_every: Steps between two records of the training losses.
        validate_every: Steps between two measurements of the validation losses and two checkpoints ``last``.
        stall_timeout_s: A single step or rollout that takes longer stops the run.
    """

    steps: int = 3500
    batch_size: int = 64
    lr: float = 0.001
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0001
    grad_clip: float = 10.0
    kl_weight: float = 10.0
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
            _require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)}: at least 1.")
        for name in ("lr", "grad_clip", "stall_timeout_s"):
            _require(getattr(self, name) > 0, f"trainer.{name}={getattr(self, name)}: more than 0.")
        for name in ("weight_decay", "kl_weight", "shift_px", "seed"):
            _require(getattr(self, name) >= 0, f"trainer.{name}={getattr(self, name)}: not negative.")
        _require(0 < self.val_fraction <= 0.5, f"trainer.val_fraction={self.val_fraction}: more than 0, at most 0.5.")
        _require(0 < self.warmup_fraction < 1, f"trainer.warmup_fraction={self.warmup_fraction}: between 0 and 1.")
        _require(0 <= self.ema_decay < 1, f"trainer.ema_decay={self.ema_decay}: from 0 to less than 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig(_Options):
    """Where the numbers of a gradient step are kept and how they are computed; changes them by rounding at most.

    Attributes:
        precision: float32 or bfloat16 (of the products; weights and losses stay float32); auto for bfloat16 on a GPU.
        compile: on or off: ``torch.compile``, which takes a minute to pay; auto for on with a GPU.
        image_storage: Where images are kept in training: device, disk (an uncompressed copy) or auto (device if they fit).
        micro_batches: Parts of a batch, one after the other, for a device that has no room for all of it.
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
        _require(self.micro_batches >= 1, f"compute.micro_batches={self.micro_batches}: at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig(_Options):
    """Rollouts during training, by which the best checkpoint is chosen.

    Attributes:
        num_evaluations: How many times, evenly over the second half of the steps and at the end; 0 for never.
        episodes: Starts of each task and time, the same ones every time, never those that ``act eval`` reports on.
    """

    num_evaluations: int = 10
    episodes: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.num_evaluations >= 0, f"selection.num_evaluations={self.num_evaluations}: not negative.")
        _require(self.episodes >= 1, f"selection.episodes={self.episodes}: at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(_Options):
    """Everything that decides a trained policy, but the data.

    Attributes:
        policy, execution, trainer, compute, selection, sim, rollout: See there.
        init_from: Run or checkpoint whose weights and normaliser training begins with; "" to begin at random.
        wandb_project: Project at Weights & Biases that gets the records of ``metrics.jsonl`` too; "" for none.
    """

    policy: PolicyConfig = PolicyConfig()
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
            f"chunking.n_action_steps={self.chunking.n_action_steps}: a chunk has only policy.chunk_size={self.policy.chunk_size}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(_Options):
    """What an evaluation measures.

    Attributes:
        episodes: Starts.
        seed: Of the evaluation's starts.
        demonstrated_episodes: Controls: episodes from demonstrated starts.
        baseline_episodes: Controls: episodes of the expert, of doing nothing and of random actions.
        num_videos: With ``--record-video``, failures first.
        video_size_px, video_fps, video_camera: What they look like.
        sim: What simulates.
        rollout: How the episodes are spread.
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
        _require(self.episodes >= 1, f"episodes={self.episodes}: at least 1.")
        for name in ("seed", "demonstrated_episodes", "baseline_episodes", "num_videos"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: not negative.")
        _require(self.video_fps in (5, 8, 10, 16, 20, 40, 80), f"video_fps={self.video_fps}: a divisor of 80.")
        _require(
            64 <= self.video_size_px <= 1024 and self.video_size_px % 16 == 0,
            f"video_size_px={self.video_size_px}: 64 to 1024, a multiple of 16.",
        )

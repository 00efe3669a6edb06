"""Options of every verb, each declared once with its default, meaning, range and flag.

:mod:`act_kit.overrides` composes them from presets and the command line.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, ClassVar

from act_kit.errors import ConfigError, did_you_mean
from act_kit.imports import import_object, is_object_name
from act_kit.options import Options, arguments_of, option, require

ENGINES = ("fast", "reference")
"""Simulation engines; see :mod:`act_kit.sim.simulator`."""

LOOKS = ("fast", "metaworld", "lerobot")
"""Looks of images; see :mod:`act_kit.sim.looks`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimConfig(Options, group="sim"):
    """Simulation.

    Attributes:
        engine: fast, or reference (Meta-World's own code, several times slower). Both give the same numbers.
    """

    engine: str = option("fast", choices=ENGINES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig(Options, group="rollout"):
    """Parallel rollouts of a policy; the results do not depend on it.

    Attributes:
        num_envs: Number of environments that run at the same time; 0 = automatic.
    """

    num_envs: int = option(0, min=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeleopConfig(Options, group="teleop"):
    """Teleoperation in a browser.

    Attributes:
        operator: Name of the operator, recorded in every episode's source; "" for the login name.
        cameras: Cameras shown side by side; key directions are relative to the first one.
        size_px: Height and width of each image.
        rate_hz: Steps per second of real time; simulated time has 80.
        speed: Hand speed while a key is held, as a fraction of an action's maximum, 0.01 m per step.
        port: Port of the page, on this machine only; 0 = any free port.
    """

    operator: str = option("", flag="--operator")
    cameras: tuple[str, ...] = ("corner4",)
    size_px: int = option(336, min=64, max=1024)
    rate_hz: int = option(20, min=1, max=80)
    speed: float = option(0.5, above=0, max=1)
    port: int = option(8765, min=0, max=65535)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.operator) <= 100 and (not self.operator or self.operator.isprintable()),
            f"teleop.operator={self.operator[:100]!r}: expected up to 100 printable characters.",
        )
        require(bool(self.cameras), "teleop.cameras=[]: expected at least one. Fix: teleop.cameras=[corner4]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DaggerConfig(Options, group="dagger"):
    """Options of the demonstrator ``policy``: the policy acts and the scripted expert labels its states (DAgger).

    Attributes:
        run: Run or checkpoint of the policy.
        expert_first: Probability that the expert acts in the next segment, in the first attempt.
        expert_last: The same in the last attempt; linear in between. Lower values collected worse data.
    """

    run: str = ""
    expert_first: float = option(0.5, min=0, max=1)
    expert_last: float = option(0.5, min=0, max=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(Options, group="replay"):
    """Options of the demonstrator ``replay``, which executes another dataset's actions open loop.

    Attributes:
        dataset: Folder of the dataset.
        init_perturbation: With replay: largest shift of the initial states in each dimension, in meters; 0 =
            unchanged.
    """

    dataset: str = ""
    init_perturbation: float = option(0.0, min=0, below=1, flag="--init-perturbation")


_SCRIPTED_NOISE = 0.1
"""Default of :attr:`CollectConfig.noise` for the scripted experts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig(Options):
    """Options that determine a dataset's bytes.

    Attributes:
        task: Meta-World task; on the command line also several tasks (a,b) or a benchmark (MT10, MT50, …).
        n: Number of demonstrations to keep.
        seed: Seed of the initial states and the noise.
        init_distribution: Initial-state distribution: uniform, sobol, grid or mt1.
        num_init_states: Number of distinct initial states, reused in turn; 0 = a new one per attempt.
        demonstrator: scripted; other-way, an expert of push-wall-v3 and pick-place-wall-v3 that goes round the other
            end of the wall; teleop, by hand in a browser; policy, labeled by the scripted expert (DAgger); or replay,
            the actions of a dataset.
        noise: Standard deviation of the noise on the executed action (DART), in action units: -1 to 1, 0.01 m
            per step. By default 0.1 for the scripted experts, so that the data show how to recover and how to
            hold the goal, and 0 for the other demonstrators.
        steps_after_success: Steps recorded after the first success, which show a policy how to hold the goal; in some
            tasks the scripted expert soon undoes its success.
        rewards: Also record Meta-World's dense reward.
        dagger: Options of the demonstrator ``policy``: the policy acts and the scripted expert labels its
            states (DAgger).
        replay: Options of the demonstrator ``replay``, which executes another dataset's actions open loop.
        sim: Simulation.
        teleop: Teleoperation in a browser.
    """

    task: str = option("pick-place-v3", flag="--task")
    n: int = option(50, min=1, flag="--n")
    seed: int = option(0, min=0, flag="--seed")
    init_distribution: str = option("uniform", flag="--init-distribution")
    num_init_states: int = option(0, min=0, flag="--num-init-states")
    demonstrator: str = option("scripted", flag="--demonstrator")
    noise: float | None = option(None, min=0, max=1, flag="--noise")
    steps_after_success: int = option(100, min=0, max=499)
    rewards: bool = False
    dagger: DaggerConfig = DaggerConfig()
    replay: ReplayConfig = ReplayConfig()
    sim: SimConfig = SimConfig()
    teleop: TeleopConfig = TeleopConfig()

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
    def action_noise(self) -> float:
        """Standard deviation of the noise on the executed action: the option, or the demonstrator's default."""
        if self.noise is not None:
            return self.noise
        return _SCRIPTED_NOISE if self.demonstrator in ("scripted", "other-way") else 0.0

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

BACKBONES = ("resnet18", "small", "keypoints")
"""Image encoders; see :mod:`act_kit.policies.vision`."""


_HEADS = "act_kit.policies.heads"


def head_names() -> list[str]:
    """Return the names of the package's own models, the files of its folder of heads."""
    entries = files("act_kit") / "policies" / "heads"
    names = [entry.name.removesuffix(".py") for entry in entries.iterdir() if entry.name.endswith(".py")]
    return sorted(name for name in names if not name.startswith("_"))


def load_head(name: str) -> None:
    """Import the package's model of that name, if there is one and its options are not known yet.

    Its file declares the options and registers the model. Only a model that is chosen is imported, because models need
    PyTorch, which is slow to import.
    """
    if name not in PolicyConfig.kinds and name in head_names():
        importlib.import_module(f"{_HEADS}.{name}")


def load_own_head(head: str) -> type[PolicyConfig]:
    """Import the user's model at ``MODULE:CLASS``, which registers it; return its class of options.

    Raises:
        ConfigError: There is none, its module cannot be imported, or the class is not registered.
    """
    require(
        is_object_name(head), f"policy.head={head}: expected MODULE:CLASS, such as policy.head=my_head:LinearModel."
    )
    _, found = import_object(head)
    kind = getattr(found, "options", None)
    if not (isinstance(kind, type) and issubclass(kind, PolicyConfig)):
        raise ConfigError(f"policy.head={head} is no model: expected a ChunkModel with @register_model(OPTIONS).")
    return kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(Options, group="policy"):
    """The model, its inputs and its sizes. Each model adds its own options in a subclass, which is found by ``name``.

    Attributes:
        name: Name of the model: act, flow, mip, or one that a module of the user registers.
        head: MODULE:CLASS of a model of the user's own, which gives the name; MODULE is imported to load it.
        inputs: state (hand, gripper, objects and goal), image+proprio (images, hand and gripper, which a real robot
            has) or image+state.
        cameras: Cameras of the images; none for state.
        backbone: resnet18; small (four convolutions), for 64 px and a CPU; or keypoints (three convolutions, and where
            learned patterns are).
        backbone_weights: File with weights of a ResNet-18 under torchvision's names, whose batch statistics are then
            frozen; "" for random weights with group normalization.
        task_embeddings: File with an embedding per task (for example of its sentence) of a multi-task policy; "" to
            learn the embeddings.
        chunk_size: Number of actions predicted at once, K; an episode has 500 steps.

    Class attributes:
        kinds: Classes of options by name.
        training_only: Options that matter in training only; a policy can be trained further with other values.
        far_factors: Factors below and above its preset beyond which an option may cause a low success rate.
    """

    kinds: ClassVar[dict[str, type[PolicyConfig]]] = {}
    training_only: ClassVar[tuple[str, ...]] = ()
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {}

    name: str = ""
    head: str = ""
    inputs: str = option("state", choices=INPUTS)
    cameras: tuple[str, ...] = ()
    backbone: str = option("resnet18", choices=BACKBONES)
    backbone_weights: str = ""
    task_embeddings: str = ""
    chunk_size: int = option(16, min=1, max=500)

    def __init_subclass__(cls, group: str = "") -> None:
        super().__init_subclass__(group)
        if cls.name:
            PolicyConfig.kinds[cls.name] = cls

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> type[PolicyConfig]:
        """Return the class of options of the model ``values["name"]``, whose module ``values["head"]`` is imported.

        Raises:
            ConfigError: No model of that name is registered, or the module cannot be imported.
        """
        name, known = values.get("name", ""), PolicyConfig.kinds
        if values.get("head"):
            own = load_own_head(str(values["head"])).name
            require(name == own, f"policy.name={name} with policy.head={values['head']}, whose name is {own}.")
        load_head(str(name))
        names = {*known, *head_names()}
        hint = did_you_mean(str(name), sorted(names))
        require(name in known, f"policy.name={name}: choose from: {', '.join(sorted(names))}.{hint}")
        return known[name]

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
        require(self.name == type(self).name, f"policy.name={self.name}: expected {type(self).name}.")
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
class TransformerConfig(PolicyConfig):
    """Options of the transformer that all heads share. The limits refuse a damaged file before memory is allocated.

    Attributes:
        dim_model: Width of the tokens, D; a multiple of ``num_heads``.
        dim_feedforward: Width of the hidden layer after each attention.
        num_heads: Heads of each attention.
        encoder_layers: Depth of the observation encoder.
        decoder_layers: Depth of the chunk decoder.
        relative_positions: Add the positions of hand, objects and goal relative to each other to the inputs with state.
        velocities: Add the displacements since the previous frame, of the hand and, in the inputs with state, of the
            objects.
        recognize_task: A policy of several tasks recognizes its task from the first state of the episode instead of
            being told; from states only.
        num_keypoints: Keypoints of each camera, with ``policy.backbone=keypoints``.
        position_weight: Weight of the error of the positions of objects and goal that the policy estimates from the
            keypoints, in training; 0 for a policy that estimates none.
        dropout: Dropout probability of every layer, in training.
    """

    training_only: ClassVar[tuple[str, ...]] = ("dropout",)
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim_model": (6, math.inf),
        "dim_feedforward": (12, math.inf),
    }

    dim_model: int = option(96, min=1, max=8192)
    dim_feedforward: int = option(384, min=1, max=65536)
    num_heads: int = option(4, min=1, max=256)
    encoder_layers: int = option(1, min=1, max=64)
    decoder_layers: int = option(1, min=1, max=64)
    relative_positions: bool = True
    velocities: bool = True
    recognize_task: bool = False
    num_keypoints: int = option(32, min=1, max=1024)
    position_weight: float = option(1.0, min=0)
    dropout: float = option(0.0, min=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = 4 if self.sees_images else 2
        require(
            self.dim_model % self.num_heads == 0 and self.dim_model % factor == 0,
            f"policy.dim_model={self.dim_model}: expected a multiple of {factor} and of "
            f"policy.num_heads={self.num_heads}.",
        )
        require(
            not (self.recognize_task and self.sees_images),
            f"policy.recognize_task=true with policy.inputs={self.inputs}: tasks are recognized from states only. Fix: "
            "policy.inputs=state, or leave policy.recognize_task out.",
        )

    @property
    def estimates_positions(self) -> bool:
        """True if the policy estimates the positions of objects and goal from images."""
        return self.backbone == "keypoints" and self.inputs == "image+proprio" and self.position_weight > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACTConfig(TransformerConfig):
    """Options of ACT.

    Attributes:
        cvae_layers: Depth of the CVAE encoder, used in training only; 0 for a model without a latent.
        latent_dim: Size of the latent z.
        kl_weight: Weight of the KL term in the loss.
    """

    training_only: ClassVar[tuple[str, ...]] = ("kl_weight", *TransformerConfig.training_only)
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {"kl_weight": (100, 10), **TransformerConfig.far_factors}

    name: str = "act"
    cvae_layers: int = option(0, min=0, max=64)
    latent_dim: int = option(32, min=1, max=4096)
    kl_weight: float = option(10.0, min=0)


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
        steps: Gradient steps; 0 = 75 times the square root of the number of steps in the data.
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
    """

    num_evaluations: int = option(10, min=0)
    episodes: int = option(20, min=1)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(Options, group="ppo"):
    """Proximal policy optimization of a correction, with chunks as decisions.

    Attributes:
        gamma: Discount of a step.
        lam: Weight of the advantage estimates over more chunks.
        sigma: Initial standard deviation of the noise on the actions, in action units.
        sigma_min: Smallest standard deviation that is learned.
        sigma_max: Largest standard deviation that is learned.
        lr: Learning rate of the correction and the noise.
        critic_lr: Learning rate of the critic.
        epochs: Passes over the decisions of an iteration.
        minibatch: Decisions per gradient step.
        clip: Largest change of the likelihood ratio that is rewarded.
        target_divergence: Kullback-Leibler divergence from the policy of the rollouts at which the steps of an
            iteration end.
        grad_clip: Largest norm of the gradients.
        reward: Reward of a success. Values are in its units, so without clipping by an absolute range it changes
            nothing.
        return_scaling: Also divide returns by their running standard deviation; their mean is never shifted.
        value_clip: none, absolute (by ``value_clip_range``, in units of reward 1) or relative (to the old value).
        value_clip_range: Largest change of a value that is learned in an iteration, with ``value_clip``.
    """

    gamma: float = option(0.999, above=0, max=1)
    lam: float = option(0.95, min=0, max=1)
    sigma: float = option(0.1, above=0, max=1)
    sigma_min: float = option(0.01, above=0, max=1)
    sigma_max: float = option(0.2, above=0, max=1)
    lr: float = option(3e-4, above=0)
    critic_lr: float = option(1e-3, above=0)
    epochs: int = option(5, min=1)
    minibatch: int = option(800, min=2)
    clip: float = option(0.1, above=0, below=1)
    target_divergence: float = option(0.02, above=0)
    grad_clip: float = option(1.0, above=0)
    reward: float = option(1.0, above=0)
    return_scaling: bool = False
    value_clip: str = option("none", choices=("none", "absolute", "relative"))
    value_clip_range: float = option(0.2, above=0)


_FINETUNE_MINUTES = 10.0
"""Default of :attr:`FinetuneConfig.minutes` without a number of steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneConfig(Options):
    """Options of fine-tuning.

    Attributes:
        minutes: Minutes of fine-tuning; they count on when it is resumed. By default 10, and no limit with ``steps``.
        steps: Simulated steps; 0 = as many as ``minutes`` allow.
        seed: Seed of the noise, the initial states and the critic.
        episodes: Episodes of an iteration; 0 = as many as have about 12,800 steps at the success rate of the base.
        failed_fraction: Fraction of an iteration's initial states that failed in the iterations before; the others are
            new.
        core_fraction: Curriculum: the first iteration draws its new initial states from this fraction of all, those
            nearest to the center of the demonstrated ones; 1 = from all.
        widen_iterations: Iterations after which new initial states are drawn from all; until then, the fraction grows
            evenly.
        failing_tasks: Fraction of the new initial states that the tasks of a policy of several get in proportion to
            their failure rates; the others are of all tasks alike.
        scale: Largest correction of a number of an action.
        width: Width of the hidden layers of the correction.
        warmup_variance: Fraction of the returns' variance that the critic explains before the policy is changed.
        select_every: Iterations between two evaluations from the selection initial states.
        select_episodes: Episodes of such an evaluation, per task.
        patience: Number of evaluations in turn without a better one after which fine-tuning ends.
        ppo: Optimization of the correction.
        sim: Simulation.
        rollout: Parallel rollouts of a policy; the results do not depend on it.
        wandb_project: Weights & Biases project that also gets the records of ``metrics.jsonl``; "" = none.
    """

    minutes: float | None = option(None, above=0, flag="--minutes")
    steps: int = option(0, min=0, flag="--steps")
    seed: int = option(0, min=0, flag="--seed")
    episodes: int = option(0, min=0)
    failed_fraction: float = option(0.0, min=0, below=1)
    core_fraction: float = option(1.0, min=0.01, max=1)
    widen_iterations: int = option(20, min=1)
    failing_tasks: float = option(0.0, min=0, max=1)
    scale: float = option(0.2, above=0, max=2)
    width: int = option(256, min=1, max=8192)
    warmup_variance: float = option(0.5, min=0, below=1)
    select_every: int = option(15, min=1)
    select_episodes: int = option(100, min=1)
    patience: int = option(3, min=1)
    ppo: PPOConfig = PPOConfig()
    sim: SimConfig = SimConfig()
    rollout: RolloutConfig = RolloutConfig()
    wandb_project: str = ""

    @property
    def budget_minutes(self) -> float:
        """Minutes of the budget; 0 for no limit."""
        if self.minutes is None:
            return 0.0 if self.steps else _FINETUNE_MINUTES
        return self.minutes


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedConfig(Options, group="served"):
    """What ``act eval`` shows to a policy server (``ws://HOST:PORT``), and how long it waits.

    Of these, ``prompt``, ``cameras`` and ``look`` are also for a LeRobot policy (``lerobot:FOLDER``).

    Attributes:
        state_key: Key of the state; "" = observation/state for openpi's format, state for vla-eval's.
        state_dim: Numbers of the state: 39, Meta-World's observation, or its first 4, hand and gripper.
        prompt_key: Key of the prompt; "" = prompt for openpi's format, task_description for vla-eval's.
        prompt: The prompt: sentence (as LeRobot's, which push-v3 and push-back-v3 share) or task (its name).
        cameras: Cameras whose images the policy is shown; [] = none, or those that a LeRobot policy names.
        image_keys: Key of each camera's image; [] = observation/image (with several cameras,
            observation/image/CAMERA) for openpi's format, images/CAMERA for vla-eval's.
        size_px: Height and width of the images.
        look: How the images are drawn: fast; metaworld, as Meta-World's own environment; lerobot, as LeRobot's.
        timeout_s: Seconds without any answer after which the waiting episodes count as failed.
    """

    state_key: str = ""
    state_dim: int = option(39, choices=(39, 4))
    prompt_key: str = ""
    prompt: str = option("sentence", choices=("sentence", "task"))
    cameras: tuple[str, ...] = ()
    image_keys: tuple[str, ...] = ()
    size_px: int = option(224, min=16, max=1024)
    look: str = option("fast", choices=LOOKS)
    timeout_s: float = option(60.0, above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.image_keys) in (0, len(self.cameras)),
            f"served.image_keys=[{','.join(self.image_keys)}]: expected one for each of served.cameras="
            f"[{','.join(self.cameras)}].",
        )


INIT_STATES = ("test", "train", "grid", "ood", "mt1", "mt50", "lerobot")
"""Kinds of initial states of an evaluation; see :mod:`act_kit.eval.init_state_sets`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolConfig(Options, group="protocol"):
    """How episodes are run and counted; :mod:`act_kit.eval.protocols` has the published protocols by name.

    Attributes:
        name: Protocol: metaworld, lerobot, evo1, rlinf, or a YAML file. Its values are presets of this group,
            episodes, seed and served.
        horizon: Steps after which an episode ends, without the settle steps.
        settle_steps: Zero actions that are executed before the policy acts; a success during them does not count.
        ends_at_success: End an episode with its first successful step.
        init_states: Initial states: test, train, grid, ood (outside the reset box), mt1 (the goals of Meta-World's
            MT1), mt50 (those that its MT50 environments reset to), lerobot (those of lerobot-eval), or an
            init_states.json.
        n_action_steps: Actions of a chunk executed before the next query; 0 = as the policy was trained, or as many
            as a server sends.
        mean: Mean over several tasks: of the tasks, or of the means of the groups of difficulty.
    """

    name: str = option("metaworld", flag="--protocol")
    horizon: int = option(500, min=1, max=500)
    settle_steps: int = option(0, min=0, max=499)
    ends_at_success: bool = False
    init_states: str = option("test", flag="--init-states")
    n_action_steps: int = option(0, min=0, max=500)
    mean: str = option("tasks", choices=("tasks", "groups"))

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.settle_steps + self.horizon <= 500,
            f"protocol.horizon={self.horizon} with protocol.settle_steps={self.settle_steps}: expected at most 500 "
            "together, the longest episode of Meta-World's environments.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig(Options):
    """Options of an evaluation.

    Attributes:
        episodes: Number of episodes of each task, each from its own initial state.
        seed: Seed of the initial states.
        delay: Steps from an observation to the first action of the policy's answer to it. Until the first answer the
            robot stands still, later it executes the rest of the previous actions. The baselines have no delay.
        protocol: How episodes are run and counted.
        demonstrated_episodes: Number of baseline episodes from demonstrated initial states.
        baseline_episodes: Number of episodes of each baseline: the expert, zero actions and random actions.
        num_videos: Number of videos with ``--record-video``, failures first.
        video_size_px: Height and width of the videos.
        video_fps: Frame rate of the videos.
        video_camera: Camera of the videos.
        sim: Simulation.
        rollout: Parallel rollouts of a policy; the results do not depend on it.
        served: What a policy server or a LeRobot policy is shown, and how long the answers of a server may take.
    """

    episodes: int = option(100, min=1, flag="--episodes")
    seed: int = option(0, min=0, flag="--seed")
    delay: int = option(0, min=0, max=499, flag="--delay")
    protocol: ProtocolConfig = ProtocolConfig()
    demonstrated_episodes: int = option(20, min=0)
    baseline_episodes: int = option(20, min=0)
    num_videos: int = option(6, min=0)
    video_size_px: int = option(320, min=64, max=1024, multiple_of=16)
    video_fps: int = option(20, choices=(5, 8, 10, 16, 20, 40, 80))
    video_camera: str = "corner4"
    sim: SimConfig = SimConfig()
    rollout: RolloutConfig = RolloutConfig()
    served: ServedConfig = ServedConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MonitorConfig(Options):
    """Options of a monitor's calibration and judgment.

    Attributes:
        episodes: Number of episodes to calibrate the monitor, and of others to judge it.
        alpha: Largest probability of a false alarm in an episode that succeeds.
        seed: Seed of the initial states.
        init_states: Initial states of the episodes that judge the monitor: test, train, grid, ood (outside the reset
            box), mt1, mt50 or lerobot. Those of the calibration are always drawn as for test, independently.
        sim: Simulation.
        rollout: Parallel rollouts of a policy; the results do not depend on it.
    """

    episodes: int = option(100, min=2, flag="--episodes")
    alpha: float = option(0.05, above=0, below=1, flag="--alpha")
    seed: int = option(0, min=0, flag="--seed")
    init_states: str = option("test", choices=INIT_STATES, flag="--init-states")
    sim: SimConfig = SimConfig()
    rollout: RolloutConfig = RolloutConfig()

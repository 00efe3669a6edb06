"""From YAML and the command line to frozen dataclasses: nothing below the command line ever sees a DictConfig.

Hydra composes ``configs/<verb>.yaml`` with the ``key=value`` overrides; the result must have exactly the fields and
types of the dataclass here, whose ``__post_init__`` says which values make sense.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, TypeVar

from act_kit.errors import ConfigError, did_you_mean

T = TypeVar("T")

ENGINES = ("fast", "reference")
"""What can simulate; see :mod:`act_kit.sim.simulator`."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimConfig:
    """What simulates.

    Attributes:
        engine: fast, or reference (Meta-World's own code, several times slower). They give the same numbers.
    """

    engine: str

    def __post_init__(self) -> None:
        hint = did_you_mean(self.engine, ENGINES)
        _require(self.engine in ENGINES, f"sim.engine={self.engine}: there are {' and '.join(ENGINES)}.{hint}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How episodes of a policy are spread; decides nothing.

    Attributes:
        rows: Environments at the same time; 0 for as many as are worth it.
    """

    rows: int

    def __post_init__(self) -> None:
        _require(self.rows >= 0, f"rollout.rows={self.rows}: not negative; 0 for as many as are worth it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Everything that decides a dataset's bytes.

    Attributes:
        task: Meta-World task.
        n: Episodes to keep.
        seed: Of the starts and the noise.
        start_law: uniform, sobol, grid, fixed or tasks50.
        demonstrator: Who demonstrates: scripted.
        noise: Standard deviation of the noise on the executed action, whose units are 0.01 m a step.
        steps_after_success: Steps recorded after the first success, which in some tasks is soon undone.
        rewards: Record Meta-World's dense reward too.
        sim: What simulates; decides nothing.
    """

    task: str
    n: int
    seed: int
    start_law: str
    demonstrator: str
    noise: float
    steps_after_success: int
    rewards: bool
    sim: SimConfig

    def __post_init__(self) -> None:
        _require(self.n >= 1, f"n={self.n}: collect at least one demonstration.")
        _require(self.seed >= 0, f"seed={self.seed}: a seed is not negative.")
        _require(0 <= self.noise <= 1, f"noise={self.noise}: from 0 to 1, the width of an action being 2.")
        _require(0 <= self.steps_after_success <= 499, f"steps_after_success={self.steps_after_success}: 0 to 499.")

    @property
    def command(self) -> str:
        """The command that collects these bytes, wherever it puts them and however many processes it uses."""
        parts = [f"act collect --task {self.task} --n {self.n} --seed {self.seed}"]
        if self.start_law == "fixed":
            parts.append("--no-randomize")
        elif self.start_law != "uniform":
            parts.append(f"--start-law {self.start_law}")
        if self.noise:
            parts.append(f"--noise {self.noise:g}")
        parts.append(f"steps_after_success={self.steps_after_success}")
        if self.rewards:
            parts.append("rewards=true")
        return " ".join(parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The sizes of an ACT model.

    Attributes:
        chunk_size: Actions predicted at once, K.
        width: Of all tokens, D; a multiple of ``num_heads``.
        feedforward: Of the hidden layer between attentions.
        num_heads: Of every attention.
        encoder_layers, decoder_layers, cvae_layers: Depth of the observation encoder, the decoder of the chunk, and the
            training-time encoder of the latent style.
        latent_dim: Of the latent style z.
        dropout: Of every layer, in training.
    """

    chunk_size: int
    width: int
    feedforward: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    cvae_layers: int
    latent_dim: int
    dropout: float

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "dropout":
                _require(0 <= value < 1, f"policy.dropout={value}: from 0 to less than 1.")
            else:
                _require(value >= 1, f"policy.{field.name}={value}: at least 1.")
        _require(
            self.width % self.num_heads == 0 and self.width % 2 == 0,
            f"policy.width={self.width}: must be even and a multiple of policy.num_heads={self.num_heads}.",
        )
        _require(self.chunk_size <= 500, f"policy.chunk_size={self.chunk_size}: an episode has 500 steps.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """How predicted chunks become actions.

    Attributes:
        execute: Actions of a chunk carried out before the next query. Ignored with ``ensemble``.
        ensemble: Query at every step and average what all chunks say of it (temporal ensembling).
        ensemble_decay: m in the weights exp(-m i), i = 0 the oldest prediction.
    """

    execute: int
    ensemble: bool
    ensemble_decay: float

    def __post_init__(self) -> None:
        _require(self.execute >= 1, f"execution.execute={self.execute}: at least 1.")
        _require(math.isfinite(self.ensemble_decay), "execution.ensemble_decay: must be a number.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How a model is fitted.

    Attributes:
        steps: Gradient steps.
        batch_size: Windows per step.
        lr: Peak learning rate of AdamW; it rises for ``warmup`` of the steps and falls to 0 along a cosine.
        warmup: Fraction of the steps.
        weight_decay: Of AdamW.
        grad_clip: Largest norm of the gradient.
        kl_weight: Of the KL term in the loss.
        seed: Of the initial weights, the batches, the latent noise and the validation split.
        val_fraction: Of the episodes, kept out of training, at least one.
        log_every: Steps between two records of the training losses.
        validate_every: Steps between two measurements of the validation losses and two checkpoints ``last``.
        stall_timeout_s: A single step or rollout that takes longer stops the run.
    """

    steps: int
    batch_size: int
    lr: float
    warmup: float
    weight_decay: float
    grad_clip: float
    kl_weight: float
    seed: int
    val_fraction: float
    log_every: int
    validate_every: int
    stall_timeout_s: float

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "validate_every"):
            _require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)}: at least 1.")
        for name in ("lr", "grad_clip", "stall_timeout_s"):
            _require(getattr(self, name) > 0, f"trainer.{name}={getattr(self, name)}: more than 0.")
        for name in ("weight_decay", "kl_weight", "seed"):
            _require(getattr(self, name) >= 0, f"trainer.{name}={getattr(self, name)}: not negative.")
        _require(0 < self.val_fraction <= 0.5, f"trainer.val_fraction={self.val_fraction}: more than 0, at most 0.5.")
        _require(0 < self.warmup < 1, f"trainer.warmup={self.warmup}: between 0 and 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """Rollouts during training, by which the best checkpoint is chosen.

    Attributes:
        rollouts: How many times, evenly over the second half of the steps and at the end; 0 for never.
        episodes: Starts of each time, the same ones every time, never those that ``act eval`` reports on.
    """

    rollouts: int
    episodes: int

    def __post_init__(self) -> None:
        _require(self.rollouts >= 0, f"selection.rollouts={self.rollouts}: not negative.")
        _require(self.episodes >= 1, f"selection.episodes={self.episodes}: at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a trained policy, but the data."""

    policy: PolicyConfig
    execution: ExecutionConfig
    trainer: TrainerConfig
    selection: SelectionConfig
    sim: SimConfig
    rollout: RolloutConfig

    def __post_init__(self) -> None:
        _require(
            self.execution.execute <= self.policy.chunk_size,
            f"execution.execute={self.execution.execute}: a chunk has only policy.chunk_size={self.policy.chunk_size}.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What an evaluation measures.

    Attributes:
        episodes: Starts.
        seed: Of the evaluation's starts.
        demonstrated_episodes: Controls: episodes from demonstrated starts.
        control_episodes: Controls: episodes of the expert, of doing nothing and of random actions.
        num_videos: With ``--record-video``, failures first.
        video_size_px, video_fps, video_camera: What they look like.
        sim: What simulates.
        rollout: How the episodes are spread.
    """

    episodes: int
    seed: int
    demonstrated_episodes: int
    control_episodes: int
    num_videos: int
    video_size_px: int
    video_fps: int
    video_camera: str
    sim: SimConfig
    rollout: RolloutConfig

    def __post_init__(self) -> None:
        _require(self.episodes >= 1, f"episodes={self.episodes}: at least 1.")
        for name in ("seed", "demonstrated_episodes", "control_episodes", "num_videos"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)}: not negative.")
        _require(self.video_fps in (5, 8, 10, 16, 20, 40, 80), f"video_fps={self.video_fps}: a divisor of 80.")
        _require(
            64 <= self.video_size_px <= 1024 and self.video_size_px % 16 == 0,
            f"video_size_px={self.video_size_px}: 64 to 1024, a multiple of 16.",
        )


def compose(name: str, kind: type[T], overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> T:
    """Compose ``configs/<name>.yaml`` with Hydra overrides and flags into a ``kind``.

    ``flags`` are values by dotted key, None for a flag that was not given; they win, and are never parsed, so they may
    hold any character.

    Raises:
        ConfigError: An unknown key (with the closest that exists), a value of the wrong type or out of range.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"'{override}' is not an override. Write key=value, such as {_example(kind)}.")
    try:
        with initialize_config_dir(str(files("act_kit") / "configs"), version_base="1.3"):
            composed = hydra_compose(name, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides, kind)) from error
    values: Any = OmegaConf.to_container(composed, resolve=True)
    for key, value in (flags or {}).items():
        if value is not None:
            *parents, leaf = key.split(".")
            inner = values
            for parent in parents:
                inner = inner[parent]
            inner[leaf] = value
    return build(kind, values)


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Build a dataclass from nested plain values, which must be its fields and of their types.

    Raises:
        ConfigError: A field is missing, unknown, or of another type.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"There is no option '{prefix}{key}'.{did_you_mean(str(key), known)}")
    arguments: dict[str, Any] = {}
    for key, field in known.items():
        if key not in values:
            raise ConfigError(f"The option '{prefix}{key}' is missing.")
        arguments[key] = _convert(prefix + key, values[key], str(field.type))
    return kind(**arguments)


_SECTIONS: dict[str, type] = {
    "PolicyConfig": PolicyConfig,
    "ExecutionConfig": ExecutionConfig,
    "TrainerConfig": TrainerConfig,
    "SelectionConfig": SelectionConfig,
    "SimConfig": SimConfig,
    "RolloutConfig": RolloutConfig,
}


def _convert(key: str, value: Any, type_name: str) -> Any:
    if type_name in _SECTIONS:
        if not isinstance(value, Mapping):
            raise ConfigError(f"'{key}' is a group of options, not {value!r}.")
        return build(_SECTIONS[type_name], value, prefix=f"{key}.")
    if type_name == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wanted = {"int": int, "float": float, "bool": bool, "str": str}[type_name]
    if type(value) is not wanted:
        raise ConfigError(f"{key}={value!r}: expected {type_name}, not {type(value).__name__}.")
    return value


def options(kind: type, prefix: str = "") -> list[str]:
    """List the dotted keys of a configuration."""
    keys: list[str] = []
    for field in dataclasses.fields(kind):
        section = _SECTIONS.get(str(field.type))
        keys += options(section, f"{prefix}{field.name}.") if section else [prefix + field.name]
    return keys


def _example(kind: type) -> str:
    return f"{options(kind)[-1]}=…"


def _explain(error: Exception, overrides: Sequence[str], kind: type) -> str:
    """Turn one of Hydra's errors into a line that names the override at fault and the mend."""
    keys = options(kind)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        groups = {known.partition(".")[0] for known in keys if "." in known}
        if key not in keys and key not in groups:
            return f"There is no option '{key}'.{did_you_mean(key, keys)}"
        if override[0] in "+~":
            return f"'{override}': options can be neither added nor removed; write {key}=value."
    return f"{' '.join(overrides)}: {str(error).splitlines()[0]}"


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested plain values, which :func:`build` reads back."""
    return dataclasses.asdict(config)

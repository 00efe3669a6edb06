"""Options of ``act eval`` and ``act monitor``."""

from __future__ import annotations

import dataclasses

from act_kit.config.simulation import LOOKS, RolloutConfig, SimConfig
from act_kit.options import Options, option, require


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
        look: How the images are drawn: fast; closeup, of which fixed cameras show only the workspace; metaworld, as
            Meta-World's own environment; lerobot, as LeRobot's.
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
        name: Protocol: metaworld, lerobot, evo1, rlinf, or a YAML file. It presets the options protocol.*, served.*,
            episodes and seed.
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
        delay: Steps from an observation to the first action of the policy's answer to it. Until the first answer, the
            robot stands still; later, it executes the rest of the previous answer. The baselines have no delay.
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
        episodes: Number of episodes that calibrate the monitor, and of other episodes that judge it.
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

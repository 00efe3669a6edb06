"""Options of ``act collect``."""

from __future__ import annotations

import dataclasses

from act_kit.config.simulation import SimConfig
from act_kit.options import Options, arguments_of, option, require


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
        expert_last: The same in the last attempt; linear in between.
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
        demonstrator: Demonstrator: scripted; other-way, an expert of push-wall-v3 and pick-place-wall-v3 that goes
            around the other end of the wall; teleop, by hand in a browser; policy, labeled by the scripted expert
            (DAgger); or replay, the actions of a dataset.
        noise: Standard deviation of the noise on the executed action (DART), in action units: -1 to 1, 0.01 m
            per step. By default 0.1 for the scripted experts, so that the data show how to recover and how to
            hold the goal; 0 for the other demonstrators.
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

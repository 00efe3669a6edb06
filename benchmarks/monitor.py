"""Does a learned dynamics model tell earlier that a policy fails than the distance to demonstrated states?

For {l1, flow} policies of each task and seed: the area under the ROC curve by step, of the distance (with and without
time), and of ensembles of {MLP, flow-matching} dynamics models that learn from the same demonstrations, with equal
sizes: their disagreement, and the realized residual of their predictions. Each signal is judged by its largest value
so far and by the mean of its last ten. Then each policy acts in imagination: the return there is ``model/return``,
never the real one, and the imagination breaks at the step at which the median error of its states exceeds the standard
deviation of the demonstrated ones.

    python -m benchmarks.monitor --out DIR [--tasks soccer-v3 basketball-v3] [--seeds 1 2 3] [--table]

What is finished is a row of ``DIR/signals.csv`` and ``DIR/imagination.csv``, and is not measured again. Other numbers
of demonstrations, steps or episodes need a folder of their own.
"""

# Shape suffixes: N states, T steps, B episodes, X inputs of a dynamics model, Y its outputs, M members, Q samples.

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.stats import spearmanr
from torch import Tensor, nn

from act_kit.datasets.store import EpisodeStore
from act_kit.monitoring.monitor import features
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.policy import Policy
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.recorder import EpisodeRules
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.tasks import TASKS
from act_kit.statistics import AreaUnderCurve
from benchmarks.experiment import append, collect, keep_settings, print_head, print_row, read_rows, train

HEADS = {"l1": "act_small", "flow": "flow_small"}
FRAME = 18
"""Numbers of a state's current frame; those of the previous frame follow, and the goal."""

MEMBERS, SAMPLES, FLOW_STEPS = 3, 4, 5
DYNAMICS_STEPS, BATCH_SIZE = 3000, 256
WIDTH = 256
TIME_WAVES = torch.arange(1, 5) * torch.pi
EVERY_STEPS, RECENT_STEPS, MIN_EPISODES = 10, 10, 5
IMAGINED_EPISODES, IMAGINED_STEPS = 30, 150
SHOWN_STEPS = (20, 40, 60, 80)


@dataclass(frozen=True)
class SignalRow:
    """The area under the ROC curve of a signal at a step, of the episodes that still run."""

    head: str
    task: str
    seed: int
    signal: str
    step: int
    area: float
    num_failures: int
    num_successes: int


@dataclass(frozen=True)
class ImaginationRow:
    """A policy in imagination: ``breaks_at`` is the first step with a median error above one standard deviation.

    It is ``IMAGINED_STEPS + 1`` if there is none.
    """

    head: str
    task: str
    seed: int
    dynamics: str
    num_parameters: int
    real_return: float
    model_return: float
    rank_correlation: float
    breaks_at: int


# -- dynamics ----------------------------------------------------------------------------------------------------------


class MLPDynamics(nn.Module):
    """Regression of the next frame's change and the reward, with the mean squared error."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int = WIDTH) -> None:
        super().__init__()
        self.net = mlp(num_inputs, num_outputs, width)

    def loss(self, inputs_BX: Tensor, targets_BY: Tensor) -> Tensor:
        return (self.net(inputs_BX) - targets_BY).square().mean()

    def samples(self, inputs_BX: Tensor) -> Tensor:
        """Return the prediction, (1, B, Y)."""
        return self.net(inputs_BX)[None]


class FlowDynamics(nn.Module):
    """Flow matching from noise to the same targets."""

    def __init__(self, num_inputs: int, num_outputs: int, width: int) -> None:
        super().__init__()
        self.net = mlp(num_inputs + num_outputs + 2 * len(TIME_WAVES), num_outputs, width)
        self.num_outputs = num_outputs

    def velocity(self, inputs_BX: Tensor, noisy_BY: Tensor, time_B1: Tensor) -> Tensor:
        phases = time_B1 * TIME_WAVES
        return self.net(torch.cat([inputs_BX, noisy_BY, phases.sin(), phases.cos()], dim=1))

    def loss(self, inputs_BX: Tensor, targets_BY: Tensor) -> Tensor:
        noise_BY, time_B1 = torch.randn_like(targets_BY), torch.rand(len(targets_BY), 1)
        noisy_BY = torch.lerp(noise_BY, targets_BY, time_B1)
        return (self.velocity(inputs_BX, noisy_BY, time_B1) - (targets_BY - noise_BY)).square().mean()

    def samples(self, inputs_BX: Tensor) -> Tensor:
        """Return samples of the prediction, (Q, B, Y), from the same noises for every input."""
        noises_QY = torch.randn(SAMPLES, self.num_outputs, generator=torch.Generator().manual_seed(0))
        samples: list[Tensor] = []
        for noise_Y in noises_QY:
            state_BY = noise_Y.expand(len(inputs_BX), -1)
            for step in range(FLOW_STEPS):
                time_B1 = torch.full((len(inputs_BX), 1), step / FLOW_STEPS)
                state_BY = state_BY + self.velocity(inputs_BX, state_BY, time_B1) / FLOW_STEPS
            samples.append(state_BY)
        return torch.stack(samples)


def mlp(num_inputs: int, num_outputs: int, width: int) -> nn.Sequential:
    """Build a network with two hidden layers."""
    hidden = [nn.Linear(num_inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
    return nn.Sequential(*hidden, nn.Linear(width, num_outputs))


def num_parameters(model: nn.Module) -> int:
    """Count the parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def make_dynamics(kind: str, num_inputs: int, num_outputs: int) -> MLPDynamics | FlowDynamics:
    """Build a model; that of flow matching has the width with which it is as large as the MLP, within 2 %."""
    reference = MLPDynamics(num_inputs, num_outputs)
    if kind == "mlp":
        return reference
    size = num_parameters(reference)
    candidates = [FlowDynamics(num_inputs, num_outputs, width) for width in range(WIDTH // 2, WIDTH + 1)]
    best = min(candidates, key=lambda model: abs(num_parameters(model) - size))
    assert abs(num_parameters(best) - size) < 0.02 * size
    return best


class Ensemble:
    """Dynamics models of one kind that differ in their initial weights and batches, in units of the demonstrations."""

    def __init__(self, kind: str, demonstrated: Sequence[Episode], seed: int) -> None:
        states = np.concatenate([episode.state[:-1] for episode in demonstrated])
        followers = np.concatenate([episode.state[1:] for episode in demonstrated])
        actions = np.concatenate([episode.executed_action[:-1] for episode in demonstrated])
        rewards = np.concatenate([episode.reward[:-1] for episode in demonstrated])
        self.mean, self.std = states.mean(axis=0), states.std(axis=0).clip(1e-2)
        targets = np.c_[followers[:, :FRAME] - states[:, :FRAME], rewards]
        self.shift, self.scale = targets.mean(axis=0), targets.std(axis=0).clip(1e-3)
        inputs_NX = self._inputs(states, actions)
        targets_NY = torch.as_tensor((targets - self.shift) / self.scale, dtype=torch.float32)
        self.members: list[MLPDynamics | FlowDynamics] = []
        for member in range(MEMBERS):
            torch.manual_seed(1000 * seed + member)
            model = make_dynamics(kind, inputs_NX.shape[1], targets_NY.shape[1])
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DYNAMICS_STEPS)
            for _ in range(DYNAMICS_STEPS):
                rows = torch.randint(len(inputs_NX), (BATCH_SIZE,))
                optimizer.zero_grad()
                model.loss(inputs_NX[rows], targets_NY[rows]).backward()
                optimizer.step()
                schedule.step()
            self.members.append(model)
        self.num_parameters = num_parameters(self.members[0])

    def _inputs(self, states: np.ndarray, actions: np.ndarray) -> Tensor:
        return torch.as_tensor(np.c_[(states - self.mean) / self.std, actions], dtype=torch.float32)

    @torch.inference_mode()
    def predict(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Return the samples of all members, (M Q, N, Y): changes of the frame and the reward, scaled."""
        inputs_NX = self._inputs(states, actions)
        return torch.cat([model.samples(inputs_NX) for model in self.members]).numpy()

    def signals(self, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
        """Return the disagreement before each action, and the residual of the last prediction, (T,) each."""
        samples = self.predict(episode.state, episode.executed_action)[..., :FRAME]
        disagreement_T = np.linalg.norm(samples.std(axis=0), axis=1)
        changes = episode.states[1:, :FRAME] - episode.state[:, :FRAME]
        realized = (changes - self.shift[:FRAME]) / self.scale[:FRAME]
        residual_T = np.linalg.norm(realized - samples.mean(axis=0), axis=1)
        return disagreement_T, np.r_[0.0, residual_T[:-1]]  # the last residual is known after the last state only

    def step(self, states_BS: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return imagined next states (B, 39) and rewards (B,): the mean of the samples."""
        predicted = self.predict(states_BS, actions).mean(axis=0) * self.scale + self.shift
        following = states_BS.copy()
        following[:, FRAME : 2 * FRAME] = states_BS[:, :FRAME]
        following[:, :FRAME] += predicted[:, :FRAME]
        return following, predicted[:, FRAME]


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure_signals(
    demonstrated: Sequence[Episode], ensembles: dict[str, Ensemble], episodes: Sequence[Episode]
) -> dict[str, list[np.ndarray]]:
    """Return each signal of each episode, (T,)."""
    known = np.concatenate([features(episode.state) for episode in demonstrated])
    tree, timeless = cKDTree(known), cKDTree(known[:, :-1])
    signals: dict[str, list[np.ndarray]] = defaultdict(list)
    for episode in episodes:
        found = features(episode.state)
        signals["distance"].append(tree.query(found)[0])
        signals["distance without time"].append(timeless.query(found[:, :-1])[0])
        for kind, ensemble in ensembles.items():
            disagreement_T, residual_T = ensemble.signals(episode)
            signals[f"{kind} disagreement"].append(disagreement_T)
            signals[f"{kind} residual"].append(residual_T)
    return signals


def largest(values_T: np.ndarray) -> float:
    """Return the largest value so far, as for an alarm that stays."""
    return float(values_T.max())


def recent(values_T: np.ndarray) -> float:
    """Return the mean of the last values, which an early peak does not hide."""
    return float(values_T[-RECENT_STEPS:].mean())


def areas(
    signal: Sequence[np.ndarray], succeeded: np.ndarray, score: Callable[[np.ndarray], float]
) -> dict[int, AreaUnderCurve]:
    """Return the area by step of a score of the values so far, of the episodes that still run."""
    found: dict[int, AreaUnderCurve] = {}
    for step in range(EVERY_STEPS, max(map(len, signal)), EVERY_STEPS):
        by_success: dict[bool, list[float]] = {True: [], False: []}
        for values, success in zip(signal, succeeded.tolist(), strict=True):
            if len(values) > step:
                by_success[success].append(score(values[: step + 1]))
        if min(map(len, by_success.values())) >= MIN_EPISODES:
            found[step] = AreaUnderCurve.of(np.array(by_success[False]), np.array(by_success[True]))
    return found


def imagine(policy: Policy, ensemble: Ensemble, real: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Let a policy act in imagination; return the states (B, T + 1, 39) and the rewards (B, T)."""
    states = [np.stack([episode.state[0] for episode in real])]
    rewards: list[np.ndarray] = []
    agent, rows = PolicyAgent(policy), np.arange(len(real))
    for row, episode in enumerate(real):
        agent.begin(row, episode.init_state, row)
    while len(rewards) < IMAGINED_STEPS:
        chunk = np.clip(agent.plan(states[-1], rows, None), -1, 1)
        for actions in chunk.transpose(1, 0, 2)[: IMAGINED_STEPS - len(rewards)]:
            following, reward = ensemble.step(states[-1], actions)
            states.append(following)
            rewards.append(reward)
    return np.stack(states, axis=1), np.stack(rewards, axis=1)


def measure(
    out: Path, head: str, task: str, seed: int, options: argparse.Namespace
) -> tuple[list[SignalRow], list[ImaginationRow]]:
    """Collect, train and measure."""
    data, run = out / "data" / f"{task}-{seed}", out / "runs" / f"{task}-{HEADS[head]}-{seed}"
    collect(data, task, options.demonstrations, seed, overrides=["rewards=true"])
    overrides = [f"policy={HEADS[head]}", "selection.num_evaluations=0"]
    policy = train(data, run, seed, overrides, steps=options.steps)
    demonstrated = list(EpisodeStore.open(data).iter_episodes(["state", "executed_action", "reward"]))
    ensembles = {kind: Ensemble(kind, demonstrated, seed) for kind in ("mlp", "flow")}
    init_states = InitialStateDistribution(task).sample(options.episodes, seed=seed, stream="monitor")
    ending = EpisodeRules(horizon=options.horizon, ends_at_success=True)
    with RolloutPool(1) as roll:
        episodes = roll(PolicyAgent(policy), init_states, rules=ending)
        shown = EpisodeRules(horizon=IMAGINED_STEPS)
        real = roll(PolicyAgent(policy), init_states[:IMAGINED_EPISODES], rules=shown, rewards=True)
    succeeded = np.array([episode.success_once for episode in episodes])
    rows: list[SignalRow] = []
    for name, signal in measure_signals(demonstrated, ensembles, episodes).items():
        for score in (largest, recent):
            for step, area in areas(signal, succeeded, score).items():
                counts = (area.num_positives, area.num_negatives)
                of = f"{name}, {score.__name__}"
                rows.append(SignalRow(head, task, seed, of, step, round(area.value, 4), *counts))
    if not rows:  # too few failures or successes at every step
        rows.append(SignalRow(head, task, seed, "none", 0, np.nan, int((~succeeded).sum()), int(succeeded.sum())))
    imagined: list[ImaginationRow] = []
    for kind, ensemble in ensembles.items():
        states, rewards = imagine(policy, ensemble, real)
        errors = (states - np.stack([episode.states for episode in real])) / ensemble.std
        median_T = np.median(np.sqrt((errors[..., :FRAME] ** 2).mean(axis=2)), axis=0)
        is_broken = np.append(median_T, np.inf) > 1
        returns = np.array([episode.reward.sum() for episode in real]), rewards.sum(axis=1)
        imagined.append(
            ImaginationRow(
                head=head,
                task=task,
                seed=seed,
                dynamics=kind,
                num_parameters=ensemble.num_parameters,
                real_return=round(float(returns[0].mean()), 1),
                model_return=round(float(returns[1].mean()), 1),
                rank_correlation=round(float(spearmanr(*returns).statistic), 3),
                breaks_at=int(is_broken.argmax()),
            )
        )
    return rows, imagined


# -- tables ------------------------------------------------------------------------------------------------------------


def print_tables(out: Path) -> None:
    """Print the mean area over steps and seeds, of each policy, task and signal, and imagination beside reality."""
    by_signal: dict[tuple[str, str, str], dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_rows(out / "signals.csv", SignalRow):
        by_signal[row.head, row.task, row.signal][row.seed][row.step] = row.area
    names = ["policy", "task", "signal", "area under the ROC curve, mean over steps", "of each seed"]
    print_head([*names, *(f"step {step}" for step in SHOWN_STEPS)])
    for key, seeds in sorted(by_signal.items()):
        means = [float(np.mean(list(of_seed.values()))) for of_seed in seeds.values()]
        cells = [*key, f"{np.mean(means):.3f}", " ".join(f"{mean:.2f}" for mean in means)]
        for step in SHOWN_STEPS:
            at_step = [of_seed[step] for of_seed in seeds.values() if step in of_seed]
            cells.append(f"{np.mean(at_step):.2f}" if at_step else "")
        print_row(cells)
    print()
    names = ["policy", "task", "seed", "dynamics", "parameters", "real return", "model/return"]
    print_head([*names, "rank correlation", "breaks at step"])
    for imagined in sorted(read_rows(out / "imagination.csv", ImaginationRow), key=str):
        print_row(map(str, asdict(imagined).values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    defaults = ["soccer-v3", "basketball-v3"]
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=defaults, metavar="TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--demonstrations", type=int, default=10)
    parser.add_argument("--steps", type=int, default=2500, help="gradient steps of a policy")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--horizon", type=int, default=500)
    parser.add_argument("--table", action="store_true", help="print what there is, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        names = ("demonstrations", "steps", "episodes", "horizon")
        keep_settings(options.out, {name: getattr(options, name) for name in names})
    done = {(row.head, row.task, row.seed) for row in read_rows(options.out / "imagination.csv", ImaginationRow)}
    for seed in [] if options.table else options.seeds:
        for task in options.tasks:
            for head in options.heads:
                if (head, task, seed) not in done:
                    rows, imagined = measure(options.out, head, task, seed, options)
                    append(options.out / "signals.csv", rows)
                    append(options.out / "imagination.csv", imagined)
                    print(f"{head}, {task}, seed {seed}: done", flush=True)
    print_tables(options.out)


if __name__ == "__main__":
    main()

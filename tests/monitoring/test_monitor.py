"""A monitor finds a policy that is lost, is silent where it is not, and its thresholds keep their promise."""

from __future__ import annotations

import fcntl
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import act_kit
from act_kit.api.progress import Progress
from act_kit.config.evaluation import MonitorConfig
from act_kit.config.finetuning import FinetuneConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import CheckpointError, ConfigError, DatasetError, OutputError
from act_kit.finetuning.run import write_run
from act_kit.monitoring.measure import RULES, calibrate, choose_task, demonstrated_states, make_monitor, watch
from act_kit.monitoring.monitor import FILE, Monitor, features
from act_kit.monitoring.result import MonitoredEpisode, MonitorResult
from act_kit.outputs import hidden_sibling
from act_kit.policies import agent as policy_agent
from act_kit.policies.policy import Policy
from act_kit.reports.monitor import monitor_report
from act_kit.rollouts.agents import Agent, ExpertAgent, RandomAgent
from act_kit.rollouts.episode import Episode
from act_kit.rollouts.rollout import RolloutPool
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.statistics import AreaUnderCurve, Rate
from act_kit.training.trainer import Trainer
from tests.conftest import TINY, make_run

TASK = "push-v3"
ALPHA = 0.1


class LostAgent(Agent):
    """The scripted expert, replaced by random actions after some steps."""

    def __init__(self, after: int) -> None:
        self._after = after
        self._expert, self._random = ExpertAgent(), RandomAgent()
        self._steps: dict[int, int] = {}

    def begin(self, row: int, init_state: InitialState, attempt: int) -> None:
        self._expert.begin(row, init_state, attempt)
        self._random.begin(row, init_state, attempt)
        self._steps[row] = 0

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        actions = self._expert.plan(states, rows, images)
        others = self._random.plan(states, rows, images)
        for i, row in enumerate(rows.tolist()):
            if self._steps[row] >= self._after:
                actions[i, 0] = others[i, 0]
            self._steps[row] += 1
        return actions


@pytest.fixture(scope="module")
def run(reach_store: EpisodeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps without rollouts, which names its data."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = make_run(folder, [reach_store.path], [*TINY, "trainer.steps=2"], {})
    Trainer(config, [reach_store], folder, evaluator=None).train()
    return folder


def roll(agent: Agent, num: int, seed: int) -> list[Episode]:
    init_states = InitialStateDistribution(TASK).sample(num, seed=seed, stream="monitor")
    with RolloutPool(1) as pool:
        return pool(agent, init_states, rules=replace(RULES, horizon=150))


@pytest.fixture(scope="module")
def monitor() -> Monitor:
    """A monitor of the scripted expert, from 40 demonstrations, calibrated by 40 episodes."""
    monitor = make_monitor(TASK, [episode.state for episode in roll(ExpertAgent(), 40, seed=0)])
    calibrate(monitor, roll(ExpertAgent(), 40, seed=1), ALPHA)
    return monitor


def test_a_lost_agent_is_found_and_a_healthy_one_is_left_alone(monitor: Monitor) -> None:
    healthy, lost = roll(ExpertAgent(), 40, seed=2), roll(LostAgent(after=20), 10, seed=3)
    false_alarms = Rate(sum(each.alarm_step is not None for each in watch(monitor, healthy)), len(healthy))
    assert false_alarms.interval[0] <= ALPHA

    assert not any(episode.success_once for episode in lost)
    steps = [each.alarm_step for each in watch(monitor, lost)]
    assert None not in steps
    assert np.median([step for step in steps if step is not None]) < 50
    at_40 = [[monitor.distances(each.state)[:41].max() for each in group] for group in (lost, healthy)]
    assert AreaUnderCurve.of(*map(np.array, at_40)).value > 0.9


def test_states_in_turn_give_the_alarm_of_the_whole_episode(monitor: Monitor, tmp_path: Path) -> None:
    monitor.save(tmp_path / FILE)
    loaded = Monitor.load(tmp_path)
    (episode,) = roll(LostAgent(after=20), 1, seed=4)
    (watched,) = watch(monitor, [episode])
    for _ in range(2):
        loaded.reset()
        said = [loaded.update(state) for state in episode.state]
        assert said.index(True) == watched.alarm_step
        assert all(said[said.index(True) :])
    assert loaded.distance == pytest.approx(watched.distances[-1])


def test_standing_still_at_a_demonstrated_state_is_far_after_a_while(monitor: Monitor) -> None:
    (episode,) = roll(ExpertAgent(), 1, seed=0)
    distances = monitor.distances(np.repeat(episode.state[20:21], 400, axis=0))
    assert distances[20] < 1e-3 < monitor.threshold < distances[-1]
    assert features(episode.state).shape == (len(episode), 38)


def test_damaged_and_missing_files_are_named(monitor: Monitor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"There is no monitor at .* Fix: act monitor RUN"):
        Monitor.load(tmp_path)
    monitor.save(tmp_path / FILE)
    whole = (tmp_path / FILE).read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2]):
        (tmp_path / FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match="is not a monitor"):
            Monitor.load(tmp_path)


def test_a_run_is_monitored_judged_and_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(policy_agent, "PolicyAgent", lambda policy: ExpertAgent())
    out = tmp_path / "monitor"
    stages = []

    def show(progress: Progress) -> None:
        stages.append(progress.stage)
        with hidden_sibling(out, "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    result = act_kit.monitor(run, episodes=12, alpha=0.2, out=out, workers=1, on_progress=show)
    assert set(stages) == {"calibrate", "judge"}
    assert result.false_alarms is not None
    assert result.false_alarms.num == 12
    assert "0 failures and 12 successes are too few" in result.sentence
    saved = json.loads((out / "monitor.json").read_text())
    assert saved["threshold"] == result.threshold == Monitor.load(out).threshold
    assert len(saved["episodes"]) == 12
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")
    monitor_report(result).print()
    assert "--init-states ood" in capsys.readouterr().out
    with pytest.raises(OutputError, match=r"It holds a monitor\. Fix: --overwrite"):
        act_kit.monitor(run, out=out)
    again = act_kit.monitor(run, episodes=12, alpha=0.2, out=out, workers=1, overwrite=True)
    assert json.loads((out / "monitor.json").read_text()) == saved == json.loads(json.dumps(again.to_dict()))


def test_a_policy_that_never_succeeds_cannot_be_calibrated(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"in 0 of 2 episodes: .* needs 19 successful ones .* act doctor RUN"):
        act_kit.monitor(run, episodes=2, workers=1)


def test_demonstrations_are_those_of_the_run_or_of_its_base(
    run: Path, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    found = demonstrated_states(Policy.load(run), "reach-v3")
    assert sum(map(len, found)) == reach_store.num_steps
    shutil.copytree(run, tmp_path / "finetuned")
    (tmp_path / "finetuned" / "config.yaml").unlink()
    write_run(tmp_path / "finetuned", run, FinetuneConfig())
    assert len(demonstrated_states(Policy.load(tmp_path / "finetuned"), "reach-v3")) == len(found)
    shutil.copytree(run / "checkpoints" / "last", tmp_path / "alone")
    with pytest.raises(CheckpointError, match="is not in a run"):
        demonstrated_states(Policy.load(tmp_path / "alone"), "reach-v3")
    with pytest.raises(DatasetError, match="No demonstration of push-v3"):
        demonstrated_states(Policy.load(run), "push-v3")
    with pytest.raises(ConfigError, match="trained on reach-v3, not on push-v3"):
        choose_task(Policy.load(run), "push-v3")


def result_of(successes: list[MonitoredEpisode], failures: list[MonitoredEpisode]) -> MonitorResult:
    provenance = {"checkpoint": "", "weights": "", "datasets": [], "init_state_set": ""}
    return MonitorResult(
        task=TASK,
        config=MonitorConfig(),
        calibration=Rate(40, 50),
        threshold=1.0,
        time_limit=60,
        episodes=[*successes, *failures],
        provenance=provenance,
    )


def episode_of(distances: np.ndarray, *, success: bool, alarm_step: int | None) -> MonitoredEpisode:
    return MonitoredEpisode(distances=distances, success=success, alarm_step=alarm_step)


def test_only_running_episodes_count_and_an_alarm_after_the_time_limit_is_late() -> None:
    rng = np.random.default_rng(0)
    successes = [episode_of(rng.uniform(0, 0.9, 45), success=True, alarm_step=None) for _ in range(20)]
    early = [episode_of(np.r_[np.full(30, 0.1), np.full(70, 2.0)], success=False, alarm_step=30) for _ in range(10)]
    late = [episode_of(np.r_[np.full(80, 0.1), np.full(20, 2.0)], success=False, alarm_step=80) for _ in range(5)]
    result = result_of(successes, early + late)
    assert list(result.auc_by_step) == [10, 20, 30, 40]
    largest = [[each.distances[:41].max() for each in group] for group in (early + late, successes)]
    assert result.auc_by_step[40] == AreaUnderCurve.of(*map(np.array, largest))
    assert (result.detections, result.early_detections) == (Rate(15, 15), Rate(10, 15))
    assert (result.alarm_steps, result.lead_steps) == ([30] * 10 + [80] * 5, [70] * 10 + [20] * 5)
    assert result.is_better_than_chance
    assert not result_of(successes, late).is_better_than_chance
    assert "it is not shown" in result_of(successes, late).sentence
    assert "4 failures and 20 successes are too few" in result_of(successes, late[:4]).sentence
    assert monitor_report(result).data["auc_by_step"].keys() == {"10", "20", "30", "40"}

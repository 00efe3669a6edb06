"""Teleoperation session without a page: when time passes, which episodes are kept, which attempts are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_kit.collection.teleop.images import ground_axes
from act_kit.collection.teleop.session import SETTLE_S, Session
from act_kit.collection.verify import replay_episode
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ArrayError, DatasetError
from act_kit.sim.render import CAMERAS
from act_kit.sim.simulator import Simulator
from tests.collection.teleop.serving import teleop_config

STAY = np.zeros(3)
UP = np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator("reach-v3")


@pytest.fixture
def session(simulator: Simulator, tmp_path: Path) -> Session:
    return Session(teleop_config(), tmp_path / "data", simulator)


def reach(session: Session, simulator: Simulator) -> None:
    """Demonstrate by moving straight to the goal."""
    session.steer(STAY, slow=False)
    while session.phase in ("ready", "running"):
        state = simulator.state
        direction = 20 * (state[36:39] - state[:3])
        session.steer(direction if np.linalg.norm(direction) > 0.1 else UP, slow=False)
        session.tick()
    assert session.phase == "succeeded"


def test_time_starts_with_the_first_input_and_stops_without_input(session: Session) -> None:
    assert not session.tick(), "no input yet"
    session.steer(UP, slow=False)
    assert not session.tick(), "a key held since before the episode"
    session.steer(STAY, slow=False)
    session.steer(UP, slow=False)
    assert session.tick()
    session.steer(STAY, slow=False)
    num = sum(session.tick() for _ in range(200))
    assert num == SETTLE_S * 20
    session.toggle_gripper()
    assert session.tick(), "the gripper takes time to close"


@pytest.mark.parametrize("direction", [np.eye(3), [0, 0], [0, 0, np.nan], ["0", "0", "1"], [True, False, False]])
def test_an_invalid_direction_is_refused(session: Session, direction: Any) -> None:
    with pytest.raises(ArrayError, match="The direction"):
        session.steer(direction, slow=False)


def test_slow_is_slower_and_diagonal_is_not_faster(session: Session, simulator: Simulator) -> None:
    def distance(direction: np.ndarray, *, slow: bool) -> float:
        session.restart()
        session.steer(STAY, slow=False)
        before = simulator.state[:3].copy()
        for _ in range(10):
            session.steer(direction, slow=slow)
            session.tick()
        return float(np.linalg.norm(simulator.state[:3] - before))

    straight = distance(np.array([0.0, 1.0, 0.0]), slow=False)
    assert distance(np.array([1.0, 1.0, 0.0]), slow=False) < 1.1 * straight
    assert distance(np.array([0.0, 1.0, 0.0]), slow=True) < 0.4 * straight


def test_a_kept_episode_is_on_disk_and_replays(session: Session, simulator: Simulator, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="only successes are kept"):
        session.keep()
    reach(session, simulator)
    session.keep()
    store = EpisodeStore.open(tmp_path / "data")
    assert (store.num_episodes, store.sources, store.fingerprint) == (1, ["teleop:anna"], None)
    (episode,) = store.episodes()
    assert replay_episode(0, episode).first_difference is None
    reach(session, simulator)
    session.keep()
    assert session.phase == "done"
    session.finish()
    assert EpisodeStore.open(tmp_path / "data").fingerprint


def test_every_attempt_is_recorded(session: Session, simulator: Simulator, tmp_path: Path) -> None:
    first = session.init_state
    session.restart()
    assert (session.init_state, session.num_discarded) == (first, 0), "no step was made"
    reach(session, simulator)
    session.restart()
    assert (session.init_state, session.num_discarded) == (first, 1)
    session.skip()
    second = session.init_state
    assert second != first
    reach(session, simulator)
    session.keep()
    attempts = EpisodeStore.open(tmp_path / "data").attempts()
    assert [(a.init_state, a.kept) for a in attempts] == [(first, False), (first, False), (second, True)]
    assert attempts[0].num_steps > 0 == attempts[1].num_steps


def test_another_operator_resumes_at_the_next_initial_state(
    session: Session, simulator: Simulator, tmp_path: Path
) -> None:
    reach(session, simulator)
    session.keep()
    reach(session, simulator)  # not kept: the session is lost
    following = session.init_state
    config = teleop_config(n=3, **{"teleop.operator": "ben"})
    session = Session(config, tmp_path / "data", simulator, resume=True)
    assert (session.init_state, session.num_kept) == (following, 1)
    for _ in range(2):
        reach(session, simulator)
        session.keep()
    store = session.finish()
    assert store is not None
    store = EpisodeStore.open(tmp_path / "data")
    assert store.fingerprint == store.compute_fingerprint()
    assert store.sources == ["teleop:anna", "teleop:ben", "teleop:ben"]
    assert store.info.num_wanted == 3
    assert "--n 3" in store.info.command
    with pytest.raises(DatasetError, match=r"other options: --seed was not given, now 1\. Resume with: act collect"):
        Session(teleop_config(seed=1), tmp_path / "data", simulator, resume=True)


def test_resuming_with_options_that_change_the_episodes_is_refused(
    session: Session, simulator: Simulator, tmp_path: Path
) -> None:
    reach(session, simulator)
    session.keep()
    with pytest.raises(DatasetError, match=r"other options: rewards was not given, now true"):
        Session(teleop_config(rewards=True), tmp_path / "data", simulator, resume=True)
    grid = {"init_distribution": "grid", "teleop.operator": "anna"}
    session = Session(teleop_config(**grid), tmp_path / "grid", simulator)
    reach(session, simulator)
    session.keep()
    with pytest.raises(DatasetError, match="with --n 9 they would differ"):
        Session(teleop_config(n=9, **grid), tmp_path / "grid", simulator, resume=True)
    with pytest.raises(DatasetError, match=r"already holds 1 episodes.*act data filter .*/grid --where 'episode < 1' "):
        Session(teleop_config(n=1, **grid), tmp_path / "grid", simulator, resume=True)


def test_reused_initial_states_resume_at_the_next_one(simulator: Simulator, tmp_path: Path) -> None:
    flags = {"n": 5, "num_init_states": 2}
    session = Session(teleop_config(**flags), tmp_path / "data", simulator)
    first = session.init_state
    for _ in range(3):
        reach(session, simulator)
        session.keep()
    resumed = Session(teleop_config(**flags), tmp_path / "data", simulator, resume=True)
    assert resumed.init_state == session.init_state != first


def test_a_failed_write_can_be_repeated(
    session: Session, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(session, simulator)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "append", fail)
        with pytest.raises(OSError, match="No space"):
            session.keep()
    assert (session.num_kept, session.phase) == (0, "succeeded")
    session.keep()
    assert EpisodeStore.open(tmp_path / "data").num_episodes == 1
    skipped = session.init_state
    with monkeypatch.context() as patch:
        patch.setattr(EpisodeStore, "append", fail)
        session.skip()
    reach(session, simulator)
    session.keep()
    attempts = EpisodeStore.open(tmp_path / "data").attempts()
    assert [attempt.kept for attempt in attempts] == [True, False, True]
    assert attempts[1].init_state == skipped, "recorded once, by the next successful write"


@pytest.mark.parametrize("camera", CAMERAS)
def test_directions_refer_to_the_image(session: Session, simulator: Simulator, camera: str) -> None:
    data = simulator.engine.data
    sign = -1.0 if camera.startswith("corner") else 1.0
    axes_33 = data.camera(camera).xmat.reshape(3, 3).T * np.array([[sign], [sign], [1.0]])
    right, away, up = ground_axes(simulator, camera)
    across = axes_33 @ right
    assert across[0] > 0.95, "right is right in the image"
    assert abs(across[1]) < 0.2, "and level"
    assert (axes_33 @ away)[2] < 0 or (axes_33 @ away)[1] > 0.5, "away from the viewer, or up in an image from above"
    np.testing.assert_allclose(np.stack([right, away, up]) @ np.stack([right, away, up]).T, np.eye(3), atol=1e-9)

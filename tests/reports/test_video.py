"""Tests of the videos of episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from act_kit.parallel import LocalExecutor
from act_kit.reports.video import overlay, record, video_path
from act_kit.rollouts.agents import ExpertAgent
from act_kit.rollouts.rollout import rollout
from act_kit.sim.initial_states import InitialStateDistribution
from act_kit.sim.render import Gl, RenderSettings
from act_kit.sim.vector import VectorSimulator


@pytest.mark.gl
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio's reader leaves pipes open
def test_episode_is_written_as_a_readable_mp4(gl: Gl, tmp_path: Path) -> None:
    import imageio.v3 as iio

    init_states = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="evaluate")
    with VectorSimulator(0) as simulators:
        outcomes = rollout(simulators, ExpertAgent(), init_states, steps_after_success=0)
    with LocalExecutor(1, gl.environment) as executor:
        path = video_path(tmp_path, 0, outcomes[0])
        record(executor, {path: outcomes[0]}, "corner4", RenderSettings(), 20)
    assert path == tmp_path / "videos" / "0000-success.mp4"
    frames = iio.imread(path)
    assert len(frames) == len(outcomes[0]) // 4 + 1 + 20
    assert frames.shape[1:] == (128, 128, 3)
    assert np.abs(frames[0].astype(int) - frames[-1].astype(int)).max() > 50


def test_overlay_shows_success_and_progress() -> None:
    init_states = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="evaluate")
    with VectorSimulator(0) as simulators:
        outcome = rollout(simulators, ExpertAgent(), init_states, steps_after_success=0)[0]
    frame = np.full((128, 128, 3), 90, np.uint8)
    begin, end = (overlay(frame, outcome, step, 4).astype(int) for step in (0, len(outcome)))
    green = (end[:20, :, 1] - end[:20, :, 0] > 60).any()
    assert green
    assert not (begin[:20, :, 1] - begin[:20, :, 0] > 60).any()
    blue = end[-4:, :, 2] - end[-4:, :, 0] > 60
    assert blue.mean() > 5 * max(0.01, (begin[-4:, :, 2] - begin[-4:, :, 0] > 60).mean())
    assert np.array_equal(begin[40:100], frame[40:100])

"""Whole commands, one after the other: from demonstrations to pages."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.metrics import read_metrics
from act_kit.policies.policy import Policy
from act_kit.sim.render import Gl
from tests.conftest import IMAGES, ONE_THREAD, TINY, act, contents, make_dataset
from tests.eval.untrained import untrained_policy


@pytest.mark.e2e
@pytest.mark.gl
def test_the_whole_pipeline(tmp_path: Path, gl: str) -> None:
    """Collect, report, train, evaluate with videos and inspect the data, each command in its own process."""
    cwd = {"cwd": tmp_path}
    collected = act("collect", "--task", "reach-v3", "--randomize", "--n", 12, "--workers", 2, check=0, **cwd)
    assert "12 demonstrations" in collected.stdout
    assert "act train --data data/reach-v3" in collected.stdout
    reported = act("report", "data/reach-v3", check=0, **cwd)
    assert "12 of 12" in reported.stdout
    assert (tmp_path / "data" / "reach-v3-report" / "report.html").exists()
    trained = act("train", "--data", "data/reach-v3", *TINY, check=0, **cwd)
    assert "act eval runs/reach-v3 --record-video" in trained.stdout
    evaluated = act("eval", "runs/reach-v3", "--episodes", 3, "num_videos=2", "--record-video", check=0, **cwd)
    results = tmp_path / "runs" / "reach-v3" / "eval-test"
    assert len(list((results / "videos").glob("*.mp4"))) == 2
    assert "tensors loaded, self-test reproduced" in evaluated.stdout
    assert json.loads((results / "summary.json").read_text())["init_state_set"]["num"] == 3
    replayed = act("data", "verify", "data/reach-v3", check=0, **cwd)
    assert "12 of 12 episodes replayed bit-exactly" in replayed.stdout
    assert "The content matches" in act("data", "info", "data/reach-v3", "--verify", check=0, **cwd).stdout
    again = act(
        "eval", "runs/reach-v3", "--init-states", results / "init_states.json", "--out", "again", check=0, **cwd
    )
    assert "3 test initial states" in again.stdout
    first, second = ((folder / "episodes.csv").read_text().splitlines() for folder in (results, tmp_path / "again"))
    assert [line.rpartition(",")[0] for line in first] == [line.rpartition(",")[0] for line in second]


@pytest.mark.e2e
def test_the_demo_compares_both_datasets_on_the_same_initial_states(tmp_path: Path) -> None:
    size = ("--n", 10, "--steps", 30, "--episodes", 2)
    done = act("demo", "--task", "handle-press-v3", *size, "--out", tmp_path / "demo", check=0)
    assert "success at any step" in done.stdout
    result = json.loads((tmp_path / "demo" / "demo.json").read_text())
    one, randomized = result["one initial state"], result["randomized initial states"]
    assert (one["diversity"]["level"], one["diversity"]["num_distinct"]) == ("FAIL", 1)
    assert randomized["diversity"]["num_distinct"] == 10
    assert one["evaluation"]["init_state_set"]["hash"] == randomized["evaluation"]["init_state_set"]["hash"]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<svg") == 4
    again = act("demo", "--task", "handle-press-v3", *size, "--out", tmp_path / "demo", check=2)
    assert "--overwrite replaces it" in again.stderr


@pytest.mark.e2e
def test_report_exits_with_2_on_fail(one_init_state_store: EpisodeStore, tmp_path: Path) -> None:
    done = act("report", one_init_state_store.path, "--out", tmp_path / "report", check=2)
    assert "the same initial state" in done.stdout
    assert "act collect --task reach-v3 --randomize" in done.stdout.replace("\n", " ")


@pytest.mark.e2e
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_resumes_to_the_same_weights(
    reach_store: EpisodeStore, tmp_path: Path, kill: signal.Signals
) -> None:
    overrides = [*TINY, "selection.num_evaluations=0", "trainer.steps=400"]
    command = ["train", "--data", reach_store.path, *overrides]
    act(*command, "--out", tmp_path / "whole", check=0)
    killed = subprocess.Popen(
        [sys.executable, "-c", "from act_kit.cli import main; main()", *map(str, command), "--out", tmp_path / "parts"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ONE_THREAD,
    )
    last = tmp_path / "parts" / "checkpoints" / "last"
    while not last.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(kill)
    output, _ = killed.communicate()
    if kill == signal.SIGTERM:
        assert killed.returncode == 130
        assert f"act train --resume --out {tmp_path / 'parts'}" in output.replace("\n", "")
    assert 0 < Policy.load(last).metadata.step < 400, "the training must be killed midway"
    act("train", "--resume", "--out", tmp_path / "parts", check=0)
    whole, parts = (Policy.load(tmp_path / name).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.e2e
def test_videos_without_a_gl_library_are_one_line_and_no_failure(tiny_run: Path, tmp_path: Path) -> None:
    environment = {**ONE_THREAD, "MUJOCO_GL": "disable"}
    done = act(
        "eval",
        tiny_run,
        "--episodes",
        1,
        "baseline_episodes=0",
        "demonstrated_episodes=0",
        "--record-video",
        "--workers",
        1,
        "--out",
        tmp_path / "eval",
        check=0,
        env=environment,
    )
    warnings = [line for line in done.stderr.splitlines() if line]
    assert len(warnings) == 1
    assert "apt-get install" in warnings[0]
    assert (tmp_path / "eval" / "report.html").exists()


@pytest.mark.e2e
def test_one_policy_of_two_tasks_from_its_data_to_its_pages(
    reach_store: EpisodeStore, push_store: EpisodeStore, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "eval"
    small = ["trainer.steps=20", "selection.num_evaluations=1", "selection.episodes=1"]
    act("train", "--data", reach_store.path, "--data", push_store.path, *TINY, *small, "--out", run, check=0)
    measured = set(read_metrics(run)[-1])
    assert {"eval/success", "eval/success/reach-v3", "eval/success/push-v3"} <= measured
    command = ["eval", run, "demonstrated_episodes=0", "baseline_episodes=1"]
    done = act(*command, "--episodes", 2, "--seed", 3, "--out", out, check=0)
    assert "2 tasks, 4 test initial states: success" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["tasks"]) == ["reach-v3", "push-v3"]
    assert summary["means"]["all"]["num_tasks"] == 2
    for task, values in summary["tasks"].items():
        own = json.loads((out / task / "summary.json").read_text())
        assert own["success_once"] == values["success_once"]
        assert own["baselines"]["expert"] == values["expert"]
        assert (out / task / "report.html").exists()
    again = act(*command, "--init-states", out / "push-v3" / "init_states.json", "--out", tmp_path / "again", check=0)
    assert "push-v3: 2 test initial states" in again.stdout
    assert contents(tmp_path / "again")["episodes.csv"] == contents(out / "push-v3")["episodes.csv"]


@pytest.mark.e2e
@pytest.mark.gl
def test_a_policy_on_images_needs_a_renderer_and_another_one_is_a_warning(
    gl: Gl, reach_store: EpisodeStore, tmp_path: Path
) -> None:
    policy = untrained_policy([reach_store], "another GPU").with_chunking(n_action_steps=8)
    self_test: dict[str, np.ndarray] = {
        "states": np.ones((1, 39)),
        "tasks": np.zeros(1, np.int64),
        "images": np.zeros((1, 2, 32, 32, 3), np.uint8),
    }
    policy.save(tmp_path, self_test)
    command = [
        "eval",
        tmp_path,
        "--episodes",
        1,
        "baseline_episodes=0",
        "demonstrated_episodes=0",
        "--workers",
        1,
        "--out",
        tmp_path / "eval",
    ]
    refused = act(*command, check=2, env={**ONE_THREAD, "MUJOCO_GL": "disable"})
    assert "no OpenGL library works here. Fix: apt-get install" in refused.stderr
    assert not (tmp_path / "eval").exists()
    done = act(*command, check=0)
    assert f"rendered by 'another GPU', this machine renders with '{gl.renderer}'" in done.stderr
    assert "reach-v3: 1 test initial states" in done.stdout


@pytest.mark.e2e
@pytest.mark.gl
def test_a_policy_on_images_is_evaluated_during_and_after_training(images_store: EpisodeStore, tmp_path: Path) -> None:
    small = ["trainer.steps=10", "selection.num_evaluations=1", "selection.episodes=1", "chunking.n_action_steps=8"]
    run = tmp_path / "run"
    act("train", "--data", images_store.path, *TINY, *IMAGES, *small, "--out", run, check=0)
    assert "eval/success" in read_metrics(run)[-1]
    done = act(
        "eval",
        run,
        "--episodes",
        2,
        "baseline_episodes=1",
        "demonstrated_episodes=0",
        "--record-video",
        "num_videos=1",
        "video_size_px=64",
        "video_fps=10",
        "video_camera=topview",
        check=0,
    )
    assert done.stderr == "", "the renderer is that of the demonstrations"
    (video,) = (run / "eval-test" / "videos").glob("*.mp4")
    with closing(imageio.get_reader(video)) as reader:
        described = reader.get_meta_data()
        assert (described["size"], described["fps"]) == ((64, 64), 10)
        from_above = reader.get_data(0)
    assert from_above[20:44, 20:44].std() > 5, "the table, seen from above"


def test_free_text_in_paths_is_never_parsed(tmp_path: Path) -> None:
    out = tmp_path / "a=b (c), {d}[e]"
    act("collect", "--task", "reach-v3", "--n", 1, "--workers", 1, "--out", out, check=0)
    assert np.isfinite(EpisodeStore.open(out).rand_vecs).all()


@pytest.mark.e2e
def test_several_tasks_are_collected_and_resumed_by_one_command(tmp_path: Path) -> None:
    command = ["collect", "--task", "reach-v3,drawer-close-v3", "--n", 3, "--out", tmp_path / "all", "--workers", 2]
    assert act(*command, check=0).stdout.count("3 demonstrations") == 2
    assert "exists" in act(*command, check=2).stderr
    shutil.rmtree(tmp_path / "all" / "drawer-close-v3")
    before = contents(tmp_path / "all" / "reach-v3")
    act(*command, "--resume", check=0)
    assert contents(tmp_path / "all" / "reach-v3") == before
    make_dataset(tmp_path / "alone", task="drawer-close-v3", n=3, steps_after_success=100, noise=None)
    assert contents(tmp_path / "all" / "drawer-close-v3") == contents(tmp_path / "alone")


@pytest.mark.e2e
def test_the_reference_engine_collects_and_evaluates_the_same(tiny_run: Path, tmp_path: Path) -> None:
    for engine, num_envs in (("fast", 0), ("reference", 2)):
        out = tmp_path / engine
        act("collect", "--task", "push-v3", "--n", 2, "--out", out / "data", f"sim.engine={engine}", check=0)
        act(
            "eval",
            tiny_run,
            "--episodes",
            3,
            "--out",
            out / "eval",
            "baseline_episodes=2",
            "demonstrated_episodes=0",
            f"sim.engine={engine}",
            f"rollout.num_envs={num_envs}",
            check=0,
        )
    assert contents(tmp_path / "fast" / "data") == contents(tmp_path / "reference" / "data")
    episodes = [(tmp_path / engine / "eval" / "episodes.csv").read_text() for engine in ("fast", "reference")]
    assert episodes[0] == episodes[1]


@pytest.mark.e2e
@pytest.mark.gl
def test_images_are_rendered_and_listed(gl: Gl, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", n=2).path
    render = ["render", data, "--camera", "corner4", "--camera", "gripperPOV", "--size", "24x32"]
    drawn = act(*render, check=0).stdout
    assert f"Rendering with {gl}" in drawn
    assert "images of closeup 24x32 px from each camera" in drawn
    assert "corner4 at closeup 24x32 by" in " ".join(act("data", "info", data, "--verify", check=0).stdout.split())
    assert "render them again with --overwrite" in act("render", data, "--look", "fast", "--size", 32, check=2).stderr
    act("render", data, "--look", "fast", "--size", 32, "--overwrite", check=0)
    assert next(ImageStore(EpisodeStore.open(data), "corner4").blocks())[1].shape[1:] == (32, 32, 3)
    assert "images of lerobot 16x16 px" in act("render", data, "--look", "lerobot", "--size", 16, check=0).stdout
    assert ImageStore(EpisodeStore.open(data), "corner2").settings.look == "lerobot"


@pytest.mark.e2e
@pytest.mark.gl
def test_a_folder_of_datasets_is_rendered_as_the_image_presets_need_it(gl: Gl, tmp_path: Path) -> None:
    for task in ("reach-v3", "push-v3"):
        act("collect", "--task", task, "--n", 2, "--out", tmp_path / "data" / task, check=0)
    drawn = act("render", tmp_path / "data", check=0).stdout
    assert "render corner, corner2, push-v3 2/2" in drawn
    assert drawn.count("images of closeup 64x64 px from each camera") == 2
    short = ["trainer.steps=1", "trainer.batch_size=2", "selection.num_evaluations=0"]
    for preset in ("act_keypoints", "act_image_small"):
        out = tmp_path / preset
        act("train", "--data", tmp_path / "data", "--out", out, f"policy={preset}", *short, check=0)
        views = Policy.load(out).views
        assert views is not None
        assert str(views.settings) == "closeup 64x64"

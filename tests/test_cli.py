"""The command line: the whole pipeline, and user errors, each answered in one or two lines."""

from __future__ import annotations

import json
import re
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
import typer.main
import yaml

from act_kit import cli
from act_kit.cli.app import app
from act_kit.config import CollectConfig, EvalConfig, TrainConfig
from act_kit.datasets.images import ImageStore
from act_kit.datasets.store import EpisodeStore
from act_kit.eval.init_state_sets import make_init_state_set
from act_kit.metrics import read_metrics
from act_kit.options import declared
from act_kit.outputs import hidden_sibling
from act_kit.policies.policy import Policy
from act_kit.sim.render import Gl
from tests.conftest import IMAGES, ONE_THREAD, TINY, act, contents, make_dataset
from tests.eval.untrained import untrained_policy


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Run ``act`` in this process; return exit code, output and error output."""
    monkeypatch.setattr("sys.argv", ["act", *map(str, arguments)])
    code: object = 0
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli.main()
    except SystemExit as exit_:
        code = exit_.code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    out, err = capsys.readouterr()
    return int(code or 0), out, err  # type: ignore[call-overload]


IMAGE_INPUTS = ("policy.inputs=image+proprio", "policy.cameras=[corner4]")

USER_ERRORS = {
    "unknown task": (("collect", "--task", "pick-plce-v3"), "Did you mean 'pick-place-v3'?"),
    "unknown task in the demo": (("demo", "--task", "pick-plce-v3"), "Did you mean 'pick-place-v3'?"),
    "unknown override": (("collect", "steps_after_sucess=3"), "Did you mean 'steps_after_success'?"),
    "unknown nested override": (("train", "--data", "DATA", "trainer.stepz=3"), "Did you mean 'trainer.steps'?"),
    "unknown preset": (("train", "--data", "DATA", "policy=act_smal"), "Did you mean 'act_small'?"),
    "several values": (("train", "--data", "DATA", "trainer.seed=0,1,2"), "Fix: --seeds 0,1,2"),
    "option of another group": (("train", "--data", "DATA", "trainer.kl_weight=1"), "Did you mean 'policy.kl_weight'?"),
    "option of another group, without a value": (("train", "--data", "DATA", "trainer.kl_weight"), "policy.kl_weight"),
    "option without a value": (("train", "--data", "DATA", "trainer.lr"), "Fix: trainer.lr=VALUE"),
    "data without a flag": (("train", "data/x"), "Fix: act train --data data/x"),
    "a dataset to evaluate": (("eval", "DATA"), "is a dataset, not a run. Fix: act train --data"),
    "a run to train on": (("train", "--data", "RUN"), "is a run, not a dataset"),
    "a run to report on": (("report", "RUN"), "is a run, not a dataset"),
    "a run to render": (("render", "RUN"), "is a run, not a dataset"),
    "missing weights": (
        ("train", "--data", "DATA", *IMAGE_INPUTS, "policy.backbone_weights=no.pth"),
        "there is no such file",
    ),
    "a file as output": (("report", "DATA", "--out", "PUSH"), "exists"),
    "a dataset to export": (("export", "DATA"), "is a dataset, not a run"),
    "an export into a folder": (("export", "RUN", "--out", "FOREIGN"), "is a folder. Fix: name a file"),
    "an export over something": (("export", "RUN", "--out", "PUSH"), "exists. Fix: --overwrite replaces it"),
    "findings into a folder": (("doctor", "DATA", "--out", "FOREIGN"), "is a folder. Fix: name a file"),
    "a page over something": (("data", "browse", "DATA", "--out", "FOREIGN"), "exists"),
    "a report over something": (("report", "DATA", "--out", "FOREIGN"), "exists"),
    "a report into its dataset": (("report", "DATA", "--out", "DATA"), "overlap. Fix: choose another --out"),
    "a page over its dataset": (("data", "browse", "DATA", "--out", "DATA", "--overwrite"), "overlap"),
    "a run over its dataset": (("train", "--data", "DATA", "--out", "DATA", "--overwrite"), "overlap"),
    "a conversion into its source": (("data", "convert", "DATA", "DATA", "--overwrite"), "overlap"),
    "nowhere to write": (("report", "DATA", "--out", "/proc/nothing/here"), "cannot be written"),
    "nothing to resume without a folder": (("train", "--resume"), "--resume needs the folder of a run"),
    "a missing policy to correct": (
        ("collect", "--demonstrator", "policy", "--source", "no"),
        "no trained policy at no",
    ),
    "not an override": (("train", "--data", "DATA", "fast"), "expected key=value"),
    "broken override": (("collect", "n=[1,"), "n=[1,"),
    "added override": (("train", "--data", "DATA", "+trainer.steps=4"), "neither added nor removed"),
    "wrong type": (("train", "--data", "DATA", "trainer.steps=many"), "expected an integer"),
    "out of range": (
        ("train", "--data", "DATA", "policy.dim_model=33"),
        "expected a multiple of 2 and of policy.num_heads",
    ),
    "more executed than predicted": (("train", "--data", "DATA", "chunking.n_action_steps=99"), "policy.chunk_size=16"),
    "no demonstrations": (("collect", "--n", "0"), "expected 1 or more"),
    "unknown initial-state distribution": (("collect", "--init-distribution", "unifrm"), "Did you mean 'uniform'?"),
    "unknown demonstrator": (("collect", "--demonstrator", "scriptd"), "Did you mean 'scripted'?"),
    "contradiction": (("collect", "--randomize", "--num-init-states", "5"), "contradict each other"),
    "missing dataset": (("report", "nowhere"), "There is no dataset at nowhere"),
    "missing dataset in training": (("train", "--data", "nowhere"), "There is no dataset at nowhere"),
    "foreign dataset": (("report", "FOREIGN"), "not a dataset of act_kit"),
    "no data": (("train",), "act train --data DATASET"),
    "low-diversity data": (("train", "--data", "ONE_INIT_STATE", "--out", "run"), "--allow-low-diversity"),
    "missing run": (("eval", "nowhere"), "There is no trained policy at nowhere"),
    "missing run to serve": (("serve", "nowhere"), "There is no trained policy at nowhere"),
    "an agent without a task": (("eval", "json:loads"), "expected --task. Fix: --task push-v3"),
    "an agent with an unknown task": (("eval", "json:loads", "--task", "push"), "Did you mean 'push-v3'?"),
    "an agent with other initial states": (
        ("eval", "json:loads", "--task", "reach-v3", "--init-states", "PUSH"),
        "the initial states are of push-v3. Fix: leave --task out",
    ),
    "an agent with action steps": (
        ("eval", "json:loads", "--task", "push-v3", "--n-action-steps", "2"),
        "chooses its actions itself. Fix: leave them out",
    ),
    "an agent from demonstrated states": (
        ("eval", "json:loads", "--task", "push-v3", "--init-states", "train"),
        "names no demonstrations. Fix: leave it out",
    ),
    "a run with a task": (("eval", "RUN", "--task", "push-v3"), "a run is evaluated on the tasks that it was trained"),
    "no such module": (("eval", "no_module:act", "--task", "push-v3"), "Fix: run act eval in the folder of no_module"),
    "no such name": (("eval", "json:load_", "--task", "push-v3"), "json has no 'load_'. Did you mean 'load'?"),
    "no server": (("eval", "ws://127.0.0.1:1", "--task", "push-v3"), "Fix: start it, such as act serve RUN"),
    "no address": (("eval", "ws://127.0.0.1", "--task", "push-v3"), "expected ws://HOST:PORT"),
    "nothing to resume": (("train", "--resume", "--out", "nowhere"), "There is no run at nowhere"),
    "existing output": (("collect", "--out", "DATA"), "--overwrite replaces it"),
    "not ours to overwrite": (("collect", "--out", "FOREIGN", "--overwrite"), "was not made by act"),
    "unknown initial states": (("eval", "RUN", "--init-states", "tesst"), "Did you mean 'test'?"),
    "initial states of another task": (("eval", "RUN", "--init-states", "PUSH", "--out", "e"), "trained on reach-v3"),
    "too many executed": (("eval", "RUN", "--n-action-steps", "99"), "predicts 8 actions at once"),
    "unknown device": (("eval", "RUN", "--device", "tpu"), "choose from: auto, cpu, cuda"),
    "unknown option": (("collect", "--tsk", "push-v3"), "--tsk"),
    "unknown verb": (("colect",), "colect"),
    "unknown engine": (("collect", "sim.engine=refrence"), "Did you mean 'reference'?"),
    "unknown executor": (("collect", "--executor", "rya"), "choose from: local, ray"),
    "negative number of environments": (
        ("eval", "RUN", "rollout.num_envs=-1"),
        "expected 0 or more. (Number",
    ),
    "one of several tasks unknown": (("collect", "--task", "reach-v3,puhs-v3"), "Did you mean 'push-v3'?"),
    "unknown camera": (("render", "DATA", "--camera", "korner4"), "Did you mean 'corner4'?"),
    "unknown size": (("render", "DATA", "--size", "big"), "expected 128, or 480x640"),
    "nothing to fine-tune": (("finetune", "nowhere"), "nowhere"),
    "a budget of no minutes": (("finetune", "RUN", "--minutes", "0"), "expected more than 0"),
    "nothing to monitor": (("monitor", "nowhere"), "There is no trained policy at nowhere"),
    "a dataset to monitor": (("monitor", "DATA"), "is a dataset, not a run"),
    "alarms without limit": (("monitor", "RUN", "--alpha", "1"), "expected more than 0 and less than 1"),
    "unknown initial states to monitor": (("monitor", "RUN", "--init-states", "odd"), "Did you mean 'ood'?"),
    "a task to monitor": (("monitor", "RUN", "--task", "push-v3"), "trained on reach-v3, not on push-v3"),
    "unknown look": (("render", "DATA", "--look", "lerobott"), "Did you mean 'lerobot'?"),
    "no such evaluation to compare": (("compare", "nowhere", "RUN"), "There is no folder nowhere"),
    "no seeds": (("train", "--data", "DATA", "--seeds", "none"), "expected a number, such as 5"),
    "the same seed twice": (("train", "--data", "DATA", "--seeds", "3,3"), "distinct seeds, such as 0,3,7"),
    "seeds and a seed": (("train", "--data", "DATA", "--seeds", "2", "--seed", "1"), "leave out --seed"),
    "seeds and an override": (("train", "--data", "DATA", "--seeds", "2", "trainer.seed=1"), "leave out --seed"),
    "nothing to render": (("render", "nowhere"), "There is no dataset at nowhere"),
}


@pytest.fixture
def places(
    reach_store: EpisodeStore,
    one_init_state_store: EpisodeStore,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    monkeypatch.chdir(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious.txt").write_text("mine")
    make_init_state_set("push-v3", "test", 2, 0, []).save(tmp_path / "push.json")
    return {
        "DATA": reach_store.path,
        "ONE_INIT_STATE": one_init_state_store.path,
        "RUN": tiny_run,
        "FOREIGN": foreign,
        "PUSH": tmp_path / "push.json",
    }


@pytest.mark.parametrize("case", USER_ERRORS)
def test_user_errors_are_answered_with_a_fix(
    case: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, hint = USER_ERRORS[case]
    code, out, err = run(monkeypatch, capsys, *(places.get(argument, argument) for argument in arguments))
    assert code == 2, out + err
    assert hint in err
    assert "Traceback" not in out + err
    if not case.startswith("unknown option") and case != "unknown verb":  # the parser draws a box
        message = [line for line in err.splitlines() if line.strip() and "the same initial state" not in line]
        assert len(message) <= 2, err
    assert (places["FOREIGN"] / "precious.txt").exists()
    assert {path.name for path in Path().iterdir()} == {"foreign", "push.json"}, "a refusal leaves nothing behind"


@pytest.mark.parametrize(
    "verb", [("data", "convert", "SET", "out", "--to", "act-hdf5"), ("doctor", "SET"), ("data", "info", "SET")]
)
def test_reading_restores_a_folder_that_a_kill_left_set_aside(
    verb: tuple[str, ...], places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = Path(shutil.copytree(places["DATA"], "set"))
    there.rename(hidden_sibling(there, "old"))
    code, _, err = run(monkeypatch, capsys, *(there if word == "SET" else word for word in verb))
    assert code == 0, err
    assert (there / "zarr.json").exists()


def test_no_space_left_is_one_line(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device", "data/state/c/0")

    monkeypatch.setattr("act_kit.datasets.store.EpisodeStore.append", full)
    code, _, err = run(monkeypatch, capsys, "collect", "--task", "reach-v3", "--n", 1, "--workers", 1, "--out", "full")
    assert code == 2
    assert "No space left on the device (data/state/c/0)" in err
    assert "--resume" in err


def test_no_temporary_folder_is_one_line(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr("act_kit.datasets.store.EpisodeStore.append", full)
    code, _, err = run(monkeypatch, capsys, "collect", "--task", "reach-v3", "--n", 1, "--workers", 1, "--out", "full")
    assert code == 2
    assert "Fix: export TMPDIR=FOLDER. Resume with: act collect" in err


def test_a_folder_that_cannot_be_written_is_one_line(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(monkeypatch, capsys, "collect", "--n", 1, "--out", "/proc/nothing/here")
    assert code == 2
    assert "Fix: choose another --out" in err


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


VERBS = (
    *(("collect",), ("report",), ("render",), ("train",), ("eval",), ("serve",), ("compare",), ("export",)),
    *(("doctor",), ("monitor",), ("demo",), ("data",)),
    *(("data", verb) for verb in ("info", "verify", "merge", "split", "filter", "convert", "browse")),
)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
@pytest.mark.parametrize("columns", [80, 60])
def test_help_shows_every_flag_whole(
    verb: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run(monkeypatch, capsys, *verb, "--help")
    command = typer.main.get_command(app)
    for name in verb:
        command = command.commands[name]  # type: ignore[attr-defined]
    flags = [flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)]
    long = [flag for flag in flags if flag.startswith("--")]
    assert (code, [flag for flag in long if flag not in re.findall(r"--[\w-]+", out)]) == (0, [])
    assert verb != ("collect",) or "--init-distribution" in long


def test_flags_have_the_help_and_the_default_of_their_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, kind in (("collect", CollectConfig), ("train", TrainConfig), ("eval", EvalConfig)):
        _, out, _ = run(monkeypatch, capsys, verb, "--help")
        text = " ".join(out.split())
        for option in declared(kind).values():
            if option.flag:
                assert option.help + ("" if option.default in ("", None) else f" [default: {option.default}]") in text


def test_help_is_fast() -> None:
    assert "Usage: act" in act("--help", check=0).stdout
    code = "import sys, act_kit.cli; print([m for m in ('torch', 'mujoco', 'zarr', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    code = "import sys, act_kit.cli.app; print([m for m in ('torch', 'mujoco', 'zarr', 'hydra') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


QUICK = [
    case
    for case in USER_ERRORS
    if USER_ERRORS[case][0][0] != "demo"
    and case
    not in (
        "low-diversity data",
        "initial states of another task",
        "an agent with other initial states",
        "no such module",
        "no such name",
        "no server",
        "too many executed",
        "unknown initial states",
        "unknown demonstrator",
        "out of range",
        "more executed than predicted",
        "no seeds",
        "the same seed twice",
        "seeds and a seed",
        "seeds and an override",
        "no such evaluation to compare",
        "unknown camera",
        "unknown size",
        "negative number of environments",
    )
]
"""User errors that are refused without importing PyTorch, MuJoCo or zarr."""


@pytest.mark.parametrize("case", QUICK)
def test_early_refusals_take_less_than_a_second(case: str, places: dict[str, Path]) -> None:
    """The limit is CPU time; it holds on an idle machine, a busy one has slower processors."""
    arguments = [str(places.get(argument, argument)) for argument in USER_ERRORS[case][0]]
    code = (
        "import resource, sys\n"
        "from act_kit.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    heavy = {'torch', 'mujoco', 'zarr', 'scipy', 'matplotlib', 'metaworld'} & set(sys.modules)\n"
        "    print(used.ru_utime + used.ru_stime, *sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=ONE_THREAD)
    seconds, *heavy = done.stdout.splitlines()[-1].split()
    assert (done.returncode, heavy) == (2, []), done.stderr
    assert float(seconds) < 1


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
    assert "images of 24x32 px from each camera" in drawn
    assert "corner4 at 24x32 by" in " ".join(act("data", "info", data, "--verify", check=0).stdout.split())
    assert "render them again with --overwrite" in act("render", data, "--size", 32, check=2).stderr
    act("render", data, "--size", 32, "--overwrite", check=0)
    assert next(ImageStore(EpisodeStore.open(data), "corner4").blocks())[1].shape[1:] == (32, 32, 3)
    assert "images of lerobot 16x16 px" in act("render", data, "--look", "lerobot", "--size", 16, check=0).stdout
    assert ImageStore(EpisodeStore.open(data), "corner2").settings.look == "lerobot"


def test_versions_and_the_module(tmp_path: Path) -> None:
    shown = act("--version", check=0).stdout
    assert shown.startswith("act_kit ")
    assert "mujoco 3.3.0" in shown
    done = subprocess.run([sys.executable, "-m", "act_kit", "--version"], capture_output=True, text=True)
    assert done.stdout == shown
    assert "--install-completion" in act("--help", check=0).stdout


def test_print_config_and_dry_run_only_print(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[tuple[object, ...]] = [
        ("collect", "--task", "push-v3", "--n", 7, "--out", "new"),
        ("train", "--data", places["DATA"], "trainer.lr=0.25", "--out", "new"),
        ("eval", places["RUN"], "--episodes", 7, "--out", "new"),
    ]
    for (verb, *rest), key in zip(commands, ("n", "trainer", "episodes"), strict=True):
        code, printed, err = run(monkeypatch, capsys, verb, *rest, "--print-config")
        values = yaml.safe_load(printed)
        assert (code, err) == (0, "")
        assert values[key] == 7 or values[key]["lr"] == 0.25
        code, planned, err = run(monkeypatch, capsys, verb, *rest, "--dry-run")
        assert (code, planned.startswith(printed), "# would" in planned) == (0, True, True), err
    assert not Path("new").exists()


@pytest.mark.e2e
def test_a_log_gets_plain_progress_lines(reach_store: EpisodeStore, tmp_path: Path) -> None:
    overrides = [*TINY, "selection.num_evaluations=1"]
    lines = act("train", "--data", reach_store.path, *overrides, "--out", tmp_path / "r", check=0).stdout.splitlines()
    records = [line for line in lines if line.startswith("[")]
    assert len(records) == 7, "steps 1, 10, …, 60"
    assert re.fullmatch(
        r"\[\d+:\d\d\] train 30/60, \S+ of \d+/s, L1 [\d.]+ val [\d.]+, success n/a, \d:\d\d left", records[3]
    )
    assert re.search(r"train 60/60, .* success \d+ \[", records[-1])
    collected = act("collect", "--task", "reach-v3", "--n", 20, "--workers", 1, "--out", tmp_path / "d", check=0).stdout
    lines = [line for line in collected.splitlines() if line.startswith("[")]
    assert re.fullmatch(r"\[\d+:\d\d\] collect reach-v3 20/20, success 100 % of 20.*", lines[-1])
    assert len(lines) <= 12
    assert "0.0/s" not in collected


@pytest.mark.e2e
@pytest.mark.parametrize(
    "variables", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"PYTHONIOENCODING": "ascii"}]
)
def test_no_home_and_no_utf8(reach_store: EpisodeStore, tmp_path: Path, variables: dict[str, str]) -> None:
    """The user has no name and no home, an ASCII locale, and a folder with an umlaut."""
    data = tmp_path / "grün"
    shutil.copytree(reach_store.path, data)
    names = ("HOME", "ACT_KIT_CACHE", "XDG_CACHE_HOME")
    environment = {name: value for name, value in ONE_THREAD.items() if name not in names} | variables
    unnamed_user = (
        "import os, pwd, warnings\n"
        "def getpwuid(number): raise KeyError('no such user')\n"
        "pwd.getpwuid = getpwuid\n"
        "from act_kit.cli import main; main()"
    )
    for arguments in (
        ["report", data],
        ["train", "--data", reach_store.path, *TINY, "selection.num_evaluations=0", "--out", tmp_path / "run"],
    ):
        done = subprocess.run(
            [sys.executable, "-X", "warn_default_encoding", "-c", unnamed_user, *map(str, arguments)],
            capture_output=True,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        warnings = [line for line in done.stderr.splitlines() if b"act_kit" in line and b"EncodingWarning" in line]
        assert warnings == []
    assert "reach-v3" in (tmp_path / "grün-report" / "report.html").read_text(encoding="utf-8")


@pytest.mark.e2e
def test_a_read_only_cache_is_no_error(reach_store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {**ONE_THREAD, "ACT_KIT_CACHE": str(tmp_path / "file" / "cache")}
    act("report", reach_store.path, "--out", tmp_path / "report", check=0, env=environment)

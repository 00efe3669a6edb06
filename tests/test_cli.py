"""User errors, each answered in one or two lines, before anything slow."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from act_kit import cli
from act_kit.datasets.store import EpisodeStore
from act_kit.eval.init_state_sets import make_init_state_set
from act_kit.outputs import hidden_sibling
from act_kit.training.run import create_run
from tests.conftest import ONE_THREAD, tiny_config


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
    "no such module": (("eval", "no_module:act", "--task", "push-v3"), "Fix: run act in the folder of no_module"),
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
    "unknown executor to fine-tune": (
        ("finetune", "RUN", "--out", "tuned", "--executor", "rya"),
        "choose from: local, ray",
    ),
    "unknown executor to render": (("render", "DATA", "--executor", "rya"), "choose from: local, ray"),
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
    "alarms without limit": (("monitor", "RUN", "--alpha", "1"), "alpha=1.0: expected more than 0, less than 1."),
    "unknown initial states to monitor": (("monitor", "RUN", "--init-states", "odd"), "Did you mean 'ood'?"),
    "a task to monitor": (("monitor", "RUN", "--task", "push-v3"), "trained on reach-v3, not on push-v3"),
    "unknown look": (("render", "DATA", "--look", "lerobott"), "Did you mean 'lerobot'?"),
    "no such evaluation to compare": (("compare", "nowhere", "RUN"), "There is no folder nowhere"),
    "no seeds": (("train", "--data", "DATA", "--seeds", "none"), "expected a number, such as 5"),
    "the same seed twice": (("train", "--data", "DATA", "--seeds", "3,3"), "distinct seeds, such as 0,3,7"),
    "seeds and a seed": (("train", "--data", "DATA", "--seeds", "2", "--seed", "1"), "leave out --seed"),
    "seeds and a typo, planned": (("train", "--data", "DATA", "--seeds", "none", "--dry-run"), "such as 5"),
    "jobs without seeds": (("train", "--data", "DATA", "--jobs", "2"), "--jobs: expected several training seeds"),
    "no requirement, planned": (("eval", "RUN", "--require", "good", "--dry-run"), "'good' is not a requirement"),
    "neither a column nor parts": (("data", "split", "DATA", "--out", "new"), "Fix: --by source, or --parts 80,20"),
    "parts that are not numbers": (("data", "split", "DATA", "--parts", "a,b", "--out", "new"), "Fix: --parts 80,20"),
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
    "arguments",
    [
        ("train", "--data", "DATA", "--seeds", "2", "--jobs", "-1"),
        ("demo", "--n", "0"),
        ("demo", "--steps", "-1"),
        ("demo", "--episodes", "0"),
        ("eval", "json:loads", "--task", "push-v3", "--n-action-steps", "0"),
        ("serve", "RUN", "--n-action-steps", "0"),
        ("doctor", "RUN", "--n-action-steps", "0"),
    ],
    ids=" ".join,
)
def test_numbers_out_of_range_are_refused_before_anything_is_written(
    arguments: tuple[str, ...],
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = run(monkeypatch, capsys, *(places.get(argument, argument) for argument in arguments))
    assert (code, f"Invalid value for '{arguments[-2]}'" in err) == (2, True), err
    assert {path.name for path in Path().iterdir()} == {"foreign", "push.json"}


@pytest.mark.parametrize(
    ("verb", "suffix"),
    [(("report",), "report"), (("data", "browse"), "view"), (("finetune",), "finetuned")],
    ids=["report", "browse", "finetune"],
)
def test_the_default_folder_is_beside_the_current_one(
    verb: tuple[str, ...],
    suffix: str,
    places: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = Path(shutil.copytree(places["RUN" if verb == ("finetune",) else "DATA"], "here"))
    taken = Path(f"here-{suffix}")
    taken.mkdir()
    (taken / "precious.txt").write_text("mine")
    monkeypatch.chdir(here)
    code, _, err = run(monkeypatch, capsys, *verb, ".")
    assert (code, f"here-{suffix} exists" in err) == (2, True), err


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
        "a task to monitor",
        "out of range",
        "more executed than predicted",
        "no seeds",
        "the same seed twice",
        "seeds and a seed",
        "seeds and an override",
        "seeds and a typo, planned",
        "no requirement, planned",
        "neither a column nor parts",
        "parts that are not numbers",
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


def test_the_plan_of_a_run_to_resume_has_its_own_options(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create_run(Path("begun"), [places["DATA"]], tiny_config(), overwrite=False)
    begun = yaml.safe_load(Path("begun/config.yaml").read_text(encoding="utf-8"))
    command = ("train", "--resume", "--out", "begun", "--dry-run")
    code, planned, err = run(monkeypatch, capsys, *command)
    assert code == 0, err
    for group in ("policy", "trainer", "selection"):
        assert yaml.safe_load(planned)[group] == begun[group]
    assert f"# would resume begun on {places['DATA']}" in planned
    steps = begun["trainer"]["steps"] + 10
    code, planned, err = run(monkeypatch, capsys, *command, "--steps", steps)
    assert (code, yaml.safe_load(planned)["trainer"]["steps"]) == (0, steps), err

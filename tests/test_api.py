"""The verbs as library calls: they return what they made, and write what the command line writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import act_kit
from act_kit.errors import ActKitError
from tests.conftest import TINY, act, contents

SMALL = ("baseline_episodes=1", "demonstrated_episodes=1")


def still(states: np.ndarray) -> np.ndarray:
    """Return zero actions (B, 4)."""
    return np.zeros((len(states), 4))


def test_a_plain_function_is_evaluated_and_prints_itself(capsys: pytest.CaptureFixture[str]) -> None:
    stages: list[str] = []
    evaluation = act_kit.evaluate(
        still,
        "reach-v3",
        episodes=3,
        overrides=["baseline_episodes=2"],
        workers=1,
        on_progress=lambda progress: stages.append(progress.stage),
    )
    assert (len(evaluation.episodes), evaluation.success.successes) == (3, 0)
    assert set(evaluation.baselines) == {"expert", "zero actions", "random"}
    assert list(dict.fromkeys(stages)) == ["policy", "expert", "zero actions", "random"]
    print(evaluation)
    shown = capsys.readouterr().out
    assert "reach-v3, 3 test initial states: success 0/3" in shown
    assert "baseline, expert: 2/2" in shown


def test_no_public_name_is_a_module_too() -> None:
    """Importing a module sets the attribute of its name, which would hide a function."""
    modules = {path.stem for path in Path(act_kit.__file__).parent.iterdir()}
    assert modules.isdisjoint(act_kit.__all__)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "evaluate(agent, 'reach-v3')"),
        ({"task": "reach-v3", "record_video": True}, "out='FOLDER'"),
        ({"task": "reach-v3", "init_states": "tesst"}, "Did you mean 'test'?"),
        ({"task": "reach-v3", "init_states": "train"}, "were not recorded"),
        ({"task": "reach-v3", "overrides": ["episodes=0"]}, "expected 1 or more"),
    ],
)
def test_evaluate_refuses_with_a_fix(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ActKitError) as error:
        act_kit.evaluate(still, **arguments)  # type: ignore[arg-type]
    assert message in str(error.value)


def test_several_tasks_are_evaluated_together() -> None:
    sets = [act_kit.make_init_state_set(task, "test", 1, 0, []) for task in ("reach-v3", "push-v3")]
    config = act_kit.EvalConfig(baseline_episodes=0)
    evaluations = act_kit.evaluate_tasks(still, sets, config, workers=1)
    assert [evaluation.task for evaluation in evaluations] == ["reach-v3", "push-v3"]


@pytest.mark.e2e
def test_the_library_makes_what_the_command_line_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = act_kit.collect("reach-v3", n=6, seed=3, workers=1)
    assert store.path == Path("data/reach-v3")
    act("collect", "--task", "reach-v3", "--n", 6, "--seed", 3, "--out", "other", check=0, cwd=tmp_path)
    assert contents(store.path) == contents(Path("other"))
    report = act_kit.measure_diversity(store, out="report")
    assert (report.level, Path("report/report.html").exists()) == ("WARN", True), report
    with pytest.raises(ActKitError, match="--overwrite replaces it"):
        act_kit.collect("reach-v3", n=6)
    methods: dict[str, list[act_kit.Evaluation]] = {}
    for size in (6, 8):
        policy = act_kit.train(
            store.path, f"runs/{size}", overrides=[*TINY, f"policy.chunk_size={size}"], steps=20, workers=1
        )
        assert policy.chunk_size == size
        out = Path(f"runs/{size}/eval-test")
        evaluation = act_kit.evaluate(policy, episodes=2, overrides=SMALL, out=out, workers=1)
        assert evaluation.folder == out
        methods[f"c{size}"] = [evaluation]
    act("eval", "runs/8", "--episodes", 2, *SMALL, "--out", "again", check=0, cwd=tmp_path)
    first, again = (contents(folder)["episodes.csv"] for folder in (out, Path("again")))
    assert first == again
    from_memory = act_kit.compare(methods, vary=["policy.chunk_size"], out="comparison")
    from_files = act_kit.compare(["runs/6", "runs/8"], vary=["policy.chunk_size"])
    assert [str(pair.result) for pair in from_memory.pairs] == [str(pair.result) for pair in from_files.pairs]
    assert Path("comparison/compare.html").exists()
    (diagnosis,) = act_kit.diagnose(store.path, workers=1)
    assert "No fault was found." in str(diagnosis) or diagnosis.verdict in str(diagnosis)
    act_kit.train(out="runs/8", steps=30, resume=True, workers=1)
    with pytest.raises(ActKitError, match=r"only trainer.steps may change"):
        act_kit.train(out="runs/8", seed=7, resume=True, workers=1)

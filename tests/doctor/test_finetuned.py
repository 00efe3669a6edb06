"""The doctor of fine-tuned runs: each injected fault is named, and a sound run has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import act_kit
from act_kit.doctor import finetuned
from act_kit.doctor.diagnose import _run_of, examine_target
from act_kit.files import write_json
from act_kit.finetuning.run import load_run, write_run

OPTIONS = ["ppo.sigma=0.1", "episodes=6", "select_episodes=6", "select_every=2", "width=32", "ppo.minibatch=100"]


@pytest.fixture(scope="module")
def sound(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run that took several updates."""
    folder = tmp_path_factory.mktemp("finetuned") / "run"
    act_kit.finetune(tiny_run, folder, overrides=[*OPTIONS, "warmup_variance=0"], steps=16_000, workers=1)
    return folder


def edit_tensors(run: Path, name: str) -> None:
    for checkpoint in ("best", "last"):
        path = run / "checkpoints" / checkpoint / "model.safetensors"
        tensors = load_file(path)
        tensors[name] = tensors[name] + 1e-6  # too little for the self-test, but not what was trained
        save_file(tensors, path)


def edit_records(run: Path, changes: dict[str, float | None], *, of_first: bool = False) -> None:
    path = run / "metrics.jsonl"
    lines: list[str] = []
    for number, line in enumerate(path.read_text().splitlines()):
        record = json.loads(line)
        for name, value in changes.items():
            if name in record and value is not None and (number < 3 or not of_first):
                record[name] = value
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


FAULTS: dict[str, Callable[[Path], None]] = {
    "normalizer not carried over": lambda run: edit_tensors(run, "normalizer.mean"),
    "base policy changed": lambda run: edit_tensors(run, "model.base.action_out.bias"),
    "critic not warmed up": lambda run: edit_records(run, {"finetune/policy_steps": 10.0}),
    "value scale exploding": lambda run: edit_records(run, {"finetune/value_high": 900.0}),
    "divergence out of bounds": lambda run: edit_records(run, {"finetune/divergence": 3.0}),
    "success not reproduced": lambda run: edit_records(run, {"eval/success": 0.97}),
}


def test_a_sound_run_has_no_critical_fault(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = examine_target(sound, num_workers=1)
    faults = {finding.name: finding.result.message for finding in findings if finding.result.is_fault}
    assert faults.keys() <= {"too few updates"}, faults
    monkeypatch.setattr(finetuned, "_FEWEST_STEPS", 1)
    statuses = {finding.name: finding.result.status for finding in examine_target(sound, num_workers=1)}
    assert set(statuses.values()) <= {"RULED OUT"}, statuses


@pytest.mark.parametrize("name", FAULTS)
def test_an_injected_fault_is_named_first(name: str, sound: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run, symlinks=True)
    FAULTS[name](run)
    first = examine_target(run, num_workers=1)[0]
    assert (first.name, first.result.status) == (name, "CONFIRMED"), first.result.message
    assert "act finetune" in first.result.fix


def test_too_few_updates_are_named_with_a_longer_budget(sound: Path) -> None:
    by_name = {finding.name: finding.result for finding in examine_target(sound, num_workers=1)}
    assert by_name["too few updates"].is_fault
    assert "--resume --steps 64000 patience=24" in by_name["too few updates"].fix


def test_an_evaluation_of_a_finetuned_run_leads_to_the_run(sound: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run, symlinks=True)
    checkpoint = (run / "checkpoints" / "best").resolve()
    for folder in (run / "eval-test", tmp_path / "elsewhere"):
        folder.mkdir()
        write_json(folder / "summary.json", {"task": "reach-v3", "training": {"checkpoint": str(checkpoint)}})
        assert _run_of(folder) == run
    names = {finding.name for finding in examine_target(run / "eval-test", num_workers=1)}
    assert names >= FAULTS.keys()


def test_a_base_that_is_gone_leaves_the_other_checks(sound: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(sound, run, symlinks=True)
    write_run(run, tmp_path / "gone", load_run(run)[1])
    findings = {finding.name: finding.result for finding in examine_target(run, num_workers=1)}
    assert findings["base policy changed"].status == findings["normalizer not carried over"].status == "UNTESTED"
    assert findings["success not reproduced"].status == "RULED OUT"

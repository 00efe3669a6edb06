"""Faults of runs and evaluations, by commands and edited files, which the doctor must rank first."""

from __future__ import annotations

import csv
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from act_kit.datasets.ops import Derivation, Part, write_derived
from act_kit.datasets.store import EpisodeStore
from act_kit.eval.files import read_evaluation
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.results import summarize
from act_kit.files import read_json, read_text, write_json, write_text
from act_kit.policies.policy import Policy
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from tests.conftest import act
from tests.doctor.cases import NUM, TASK, Case, edit
from tests.doctor.data_faults import ACTIONS, change_steps, scale_columns, write_array


def identical_init_states(case: Case) -> None:
    case.collect("--num-init-states", 1)
    case.train("--allow-low-diversity")


def five_init_states(case: Case) -> None:
    case.collect("--num-init-states", 5)
    case.train("--allow-low-diversity")


def half_the_box(case: Case) -> None:
    act("collect", "--task", TASK, "--n", 3 * NUM, "--out", case.folder / "all", "--workers", 1, check=0)
    everything = EpisodeStore.open(case.folder / "all")
    dim = int(np.ptp(everything.rand_vecs, axis=0).argmax())
    middle = np.median(everything.rand_vecs[:, dim])
    chosen = np.flatnonzero(everything.rand_vecs[:, dim] < middle)[:NUM]
    half = Derivation(parts=[Part(store=everything, episodes=chosen)], command="half the box")
    write_derived(case.data, {"": half}, half.command, overwrite=False)
    case.train("--allow-low-diversity")


def hidden_goal(case: Case) -> None:
    case.collect()
    edit(case, lambda store: change_steps(store, ["state"], scale_columns(slice(36, 39), 0)))
    case.train("--allow-low-diversity")


def actions_off_by_one(case: Case) -> None:
    case.collect()
    edit(case, lambda store: change_steps(store, ACTIONS, lambda actions: np.roll(actions, 1, axis=0)))
    case.train("--allow-low-diversity")


def unclipped_actions(case: Case) -> None:
    def unclip(store: EpisodeStore) -> None:
        expert = ScriptedExpert(TASK)
        actions = [expert._policy.get_action(state.copy()) for state in store.steps("state")]
        write_array(store, "data/action", np.array(actions, dtype=np.float32))

    case.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit(case, unclip)
    case.train("--allow-low-diversity")


def underfitting(case: Case) -> None:
    case.collect()
    case.train("trainer.steps=12", "trainer.validate_every=6")


def another_camera(case: Case) -> None:
    case.collect()
    act("render", case.data, "--size", 32, "--workers", 1, check=0)
    case.train(
        "policy=act_image_small",
        "trainer.steps=30",
        "trainer.validate_every=15",
        "selection.episodes=2",
    )
    path = case.checkpoint / "policy.json"
    path.write_text(path.read_text().replace("corner2", "topview"))


def far_from_the_preset(case: Case) -> None:
    case.collect()
    case.train("trainer.lr=1e-6")


def resave(case: Case, change: Callable[[Policy], object]) -> None:
    """Change a policy and save it with a matching self-test, as a faulty trainer would."""
    tensors = load_file(case.checkpoint / "model.safetensors")
    self_test = {
        name.removeprefix("self_test."): rows for name, rows in tensors.items() if name.startswith("self_test.")
    }
    del self_test["chunks"]
    policy = Policy.load(case.checkpoint)
    change(policy)
    policy.save(case.checkpoint, self_test)


def wrong_normalizer(case: Case) -> None:
    resave(case, lambda policy: policy.normalizer.mean.add_(0.05))
    case.evaluate()


def amplified_constant(case: Case) -> None:
    def amplify(policy: Policy) -> None:
        constant = int(policy.normalizer.is_constant.nonzero()[0])
        policy.normalizer.is_constant[constant] = False
        policy.normalizer.std[constant] = 1e-8

    resave(case, amplify)
    case.evaluate()


def tensors_missing(case: Case) -> None:
    tensors = load_file(case.checkpoint / "model.safetensors")
    keep = {name: tensor for number, (name, tensor) in enumerate(sorted(tensors.items())) if number >= 24}
    save_file(keep, case.checkpoint / "model.safetensors")


def truncated_checkpoint(case: Case) -> None:
    path = case.checkpoint / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def metric_under_another_name(case: Case) -> None:
    path = case.run / "metrics.jsonl"
    path.write_text(path.read_text().replace('"eval/success":', '"eval/sucess":'))


def every_step_without_ensembling(case: Case) -> None:
    case.evaluate("--n-action-steps", 1)


def training_init_states(case: Case) -> None:
    """Disable the check of the evaluation as well, because with it the command refuses."""
    case.evaluate(
        "--init-states",
        reuse_training_init_states(case),
        "--out",
        case.evaluation,
        patch="import act_kit.eval.evaluate as m; m.check_disjoint = lambda *a: None",
    )


def reuse_training_init_states(case: Case) -> Path:
    """Write a set of demonstrated initial states that is declared as test initial states."""
    init_states = EpisodeStore.open(case.data).init_states[:40]
    path = case.folder / "mine.json"
    InitialStateSet(task=TASK, kind="test", seed=0, init_states=tuple(init_states)).save(path)
    return path


def short_horizon(case: Case) -> None:
    case.evaluate(patch="import act_kit.sim.tasks as m; m.HORIZON = 100")


def another_tasks_checkpoint(case: Case) -> None:
    other = Case(case.folder / "other")
    act("collect", "--task", "push-v3", "--n", 20, "--out", other.data, "--workers", 1, check=0)
    steps = ("trainer.steps=60", "trainer.validate_every=30", "selection.num_evaluations=1", "selection.episodes=2")
    act("train", "--data", other.data, "--out", other.run, "--workers", 1, *steps, check=0)
    shutil.rmtree(case.run / "checkpoints")
    shutil.copytree(other.run / "checkpoints", case.run / "checkpoints", symlinks=True)


def edited_result(case: Case) -> None:
    path = case.evaluation / "summary.json"
    summary = json.loads(path.read_text())
    summary["success_once"]["successes"] -= 7
    path.write_text(json.dumps(summary))


def data_collected_anew(case: Case) -> None:
    shutil.rmtree(case.data)
    case.collect("--seed", 5)


def chosen_init_states(case: Case) -> None:
    """Disable the check of the initial states as well, because with it the command declares them correctly."""
    case.evaluate(
        "--init-states",
        choose_init_states(case),
        "--out",
        case.evaluation,
        patch="import act_kit.eval.init_state_sets as m; m.InitialStateSet.follows_distribution = True",
    )


def choose_init_states(case: Case) -> Path:
    """Write a set of hand-picked initial states that is declared as test initial states."""
    drawn = InitialStateDistribution(TASK).sample(80, seed=3, stream="evaluate")
    path = case.folder / "mine.json"
    InitialStateSet(task=TASK, kind="test", seed=0, init_states=tuple(drawn[::2])).save(path)
    return path


def nearly_training_init_states(case: Case) -> None:
    path = case.folder / "mine.json"
    init_states = [
        InitialState.of(TASK, init_state.array + 2e-6) for init_state in EpisodeStore.open(case.data).init_states[:40]
    ]
    InitialStateSet(task=TASK, kind="file", seed=0, init_states=tuple(init_states)).save(path)
    case.evaluate(
        "--init-states",
        path,
        "--out",
        case.evaluation,
        patch="import act_kit.eval.evaluate as m; m.check_disjoint = lambda *a: None",
    )


def edited_alike(case: Case) -> None:
    """Turn seven successes into failures, consistently in all files and all columns."""
    path = case.evaluation / "episodes.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::6]:
        row.update(
            success_once="0", success_at_end="0", success_step="", failure_mode="never reached", furthest_stage="near"
        )
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_json(case.evaluation / "summary.json", summarize(read_evaluation(case.evaluation)))


def evaluated_before_trained(case: Case) -> None:
    """Change the weights, but not the step."""
    resave(case, lambda policy: next(policy.model.parameters()).data.mul_(1.001))


def first_checkpoint_is_best(case: Case) -> None:
    checkpoints = case.run / "checkpoints"
    first = checkpoints / "step-000300"
    shutil.copytree(case.checkpoint, first)
    policy = read_json(first / "policy.json")
    policy["metadata"]["step"] = 300
    write_json(first / "policy.json", policy)
    (checkpoints / "best").unlink()
    (checkpoints / "best").symlink_to(first.name)


def edited_losses(case: Case) -> None:
    path = case.run / "metrics.jsonl"
    records = [json.loads(line) for line in read_text(path).splitlines()]
    for record in records:
        record.update({name: value / 2 for name, value in record.items() if name.startswith("val/")})
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def cut_records(case: Case) -> None:
    path = case.run / "metrics.jsonl"
    lines = read_text(path).splitlines(keepends=True)
    write_text(path, "".join(line for line in lines if json.loads(line)["step"] <= 350))


@dataclass(frozen=True)
class Fault:
    """A fault, and the name under which the doctor must rank it first."""

    name: str
    inject: Callable[[Case], None]
    found_as: str
    of_healthy: bool = True


FAULTS = [
    Fault("identical initial states", identical_init_states, "poor coverage of initial states", of_healthy=False),
    Fault("five initial states repeated", five_init_states, "poor coverage of initial states", of_healthy=False),
    Fault("half the box", half_the_box, "poor coverage of initial states", of_healthy=False),
    Fault("hidden goal", hidden_goal, "goal hidden", of_healthy=False),
    Fault("actions off by one", actions_off_by_one, "actions off by some steps", of_healthy=False),
    Fault("unclipped actions", unclipped_actions, "unclipped actions", of_healthy=False),
    Fault("underfitting", underfitting, "underfitting", of_healthy=False),
    Fault("another camera in use", another_camera, "image mismatch", of_healthy=False),
    Fault("wrong normalizer", wrong_normalizer, "normalizer of other data"),
    Fault("constant dimension amplified", amplified_constant, "normalizer of other data"),
    Fault("24 tensors missing", tensors_missing, "checkpoint does not load"),
    Fault("truncated checkpoint", truncated_checkpoint, "checkpoint does not load"),
    Fault("metric under another name", metric_under_another_name, "undeclared metrics"),
    Fault("query at every step without ensembling", every_step_without_ensembling, "chunking mismatch"),
    Fault("evaluated on training initial states", training_init_states, "evaluated on training initial states"),
    Fault("horizon too short", short_horizon, "horizon too short"),
    Fault("another task's checkpoint", another_tasks_checkpoint, "checkpoint of another run"),
    Fault("result edited by hand", edited_result, "evaluation damaged"),
    Fault("data collected anew", data_collected_anew, "checkpoint of another run"),
    Fault("settings far from the preset", far_from_the_preset, "settings far from the preset", of_healthy=False),
    Fault("initial states selected by hand", chosen_init_states, "mislabeled initial states"),
    Fault("2 µm from training initial states", nearly_training_init_states, "evaluated on training initial states"),
    Fault("result edited everywhere", edited_alike, "evaluation not reproducible"),
    Fault("evaluated before it was trained", evaluated_before_trained, "evaluation of another task or policy"),
    Fault("first checkpoint called best", first_checkpoint_is_best, "wrong best checkpoint"),
    Fault("losses edited", edited_losses, "records edited"),
    Fault("records cut", cut_records, "missing records"),
]


def inject(fault: Fault, healthy: Case, folder: Path) -> Case:
    """Inject a fault into a copy of the healthy case, or into a new case."""
    case = healthy.copy(folder) if fault.of_healthy else Case(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fault.inject(case)
    return case

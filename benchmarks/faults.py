"""Benchmark of the doctor: faults are injected into a healthy run, one at a time, with the real commands and files.

    python -m benchmarks.faults --out faults

A fault counts as found if `act doctor` ranks it first, or if a command refuses it with a message that names it. The
healthy run must have no critical finding; it is made once and kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from act_kit.collection.recorder import Recorder
from act_kit.datasets.ops import Derivation, Part, write_derived
from act_kit.datasets.store import EpisodeStore
from act_kit.datasets.write import write_dataset
from act_kit.eval.files import read_evaluation
from act_kit.eval.init_state_sets import InitialStateSet
from act_kit.eval.results import summarize
from act_kit.files import read_json, read_text, write_json, write_text
from act_kit.policies.policy import Policy
from act_kit.rollouts.episode import Attempt, Recording
from act_kit.sim.expert import ScriptedExpert
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator
from benchmarks.command import act

TASK = "reach-v3"
NUM = 50
TRAINING = ("trainer.steps=600", "trainer.validate_every=300", "selection.num_evaluations=2", "selection.episodes=10")


@dataclass(frozen=True)
class Case:
    """A dataset, a run trained on it and that run's evaluation, all in one folder."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def evaluation(self) -> Path:
        return self.run / "eval-test"

    @property
    def checkpoint(self) -> Path:
        return (self.run / "checkpoints" / "best").resolve()

    def collect(self, *arguments: object) -> None:
        """Collect the dataset."""
        act("collect", "--task", TASK, "--n", NUM, "--out", self.data, "--workers", 1, *arguments)

    def train(self, *arguments: object) -> None:
        """Train on it, and evaluate."""
        act("train", "--data", self.data, "--out", self.run, "--workers", 1, *TRAINING, *arguments)
        self.evaluate()

    def evaluate(self, *arguments: object, patch: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Evaluate the run."""
        return act(
            "eval", self.run, "--episodes", 40, "--workers", 1, "--overwrite", *arguments, patch=patch, code=code
        )

    def copy(self, folder: Path) -> Case:
        """Copy the folder; the copied run names the copied dataset."""
        shutil.copytree(self.folder, folder, symlinks=True)
        config = folder / "run" / "config.yaml"
        config.write_text(config.read_text().replace(str(self.data.resolve()), str((folder / "data").resolve())))
        return Case(folder)

    def diagnose(self) -> list[dict[str, str]]:
        """Run the doctor and return its findings."""
        out = self.folder / "findings.json"
        act("doctor", self.run, "--out", out, "--workers", 1, code=None)
        (findings,) = json.loads(out.read_text()).values()
        return findings


def make_healthy(folder: Path) -> Case:
    """Collect, train and evaluate without any fault."""
    case = Case(folder)
    if not (case.evaluation / "summary.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        case.collect()
        case.train()
    return case


# -- faults of the data: collected or edited, then trained on and evaluated ----------------------------------------


def edit(case: Case, change: Callable[[EpisodeStore], None]) -> None:
    """Edit the arrays of a dataset and recompute its fingerprint, like an unintended edit by a user."""
    change(EpisodeStore.open(case.data, writable=True))
    EpisodeStore.open(case.data, writable=True).finish()


def identical_init_states(case: Case) -> None:
    case.collect("--num-init-states", 1)
    case.train("--allow-low-diversity")


def five_init_states(case: Case) -> None:
    case.collect("--num-init-states", 5)
    case.train("--allow-low-diversity")


def half_the_box(case: Case) -> None:
    act("collect", "--task", TASK, "--n", 3 * NUM, "--out", case.folder / "all", "--workers", 1)
    everything = EpisodeStore.open(case.folder / "all")
    dim = int(np.ptp(everything.rand_vecs, axis=0).argmax())
    middle = np.median(everything.rand_vecs[:, dim])
    chosen = np.flatnonzero(everything.rand_vecs[:, dim] < middle)[:NUM]
    half = Derivation(parts=[Part(store=everything, episodes=chosen)], command="half the box")
    write_derived(case.data, {"": half}, half.command, overwrite=False)
    case.train("--allow-low-diversity")


def hidden_goal(case: Case) -> None:
    def hide(store: EpisodeStore) -> None:
        states = store.steps("state")
        states[:, -3:] = 0
        store.group["data/state"][:] = states

    case.collect()
    edit(case, hide)
    case.train("--allow-low-diversity")


def actions_off_by_one(case: Case) -> None:
    def shift(store: EpisodeStore) -> None:
        for name in ("action", "executed_action"):
            episodes = np.split(store.steps(name), store.episode_ends[:-1])
            store.group[f"data/{name}"][:] = np.concatenate([np.roll(steps, 1, axis=0) for steps in episodes])

    case.collect()
    edit(case, shift)
    case.train("--allow-low-diversity")


def unclipped_actions(case: Case) -> None:
    def unclip(store: EpisodeStore) -> None:
        expert = ScriptedExpert(TASK)
        store.group["data/action"][:] = np.stack(
            [np.asarray(expert._policy.get_action(state.copy()), dtype=np.float32) for state in store.steps("state")]
        )

    import warnings

    case.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        edit(case, unclip)
    case.train("--allow-low-diversity")


# -- faults of a run that was healthy ------------------------------------------------------------------------------


def resave(case: Case, change: Callable[[Policy], None]) -> None:
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


Z_SAMPLED = """
import torch, act_kit.policies.act as m
decode = m.ACT.decode
m.ACT.decode = lambda self, embedded, z: decode(self, embedded, torch.randn(16, self.config.latent_dim))
"""


def training_init_states(case: Case) -> None:
    """Disable the check of the evaluation as well, because with it the command refuses (see REFUSALS)."""
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
    act("collect", "--task", "push-v3", "--n", 20, "--out", other.data, "--workers", 1)
    act(
        "train",
        "--data",
        other.data,
        "--out",
        other.run,
        "--workers",
        1,
        "trainer.steps=60",
        "trainer.validate_every=30",
        "selection.num_evaluations=1",
        "selection.episodes=2",
    )
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


def underfitting(case: Case) -> None:
    case.collect()
    case.train("trainer.steps=12", "trainer.validate_every=6")


def another_camera(case: Case) -> None:
    case.collect()
    act("render", case.data, "--camera", "corner4", "--size", 32, "--workers", 1)
    case.train(
        "policy=act_image_small",
        "trainer.steps=30",
        "trainer.validate_every=15",
        "selection.episodes=2",
    )
    path = case.checkpoint / "policy.json"
    path.write_text(path.read_text().replace("corner4", "topview"))


# -- faults of the demonstrations, which act report, act train and act doctor DATASET must name -----------------------


ACTIONS = ("action", "executed_action")


def change_steps(
    store: EpisodeStore, names: Sequence[str], change: Callable[[np.ndarray], np.ndarray], episodes: slice = slice(None)
) -> None:
    """Change the steps of fields, episode by episode."""
    for name in names:
        parts = np.split(store.steps(name), store.episode_ends[:-1])
        parts[episodes] = [change(part.copy()) for part in parts[episodes]]
        store.group[f"data/{name}"][:] = np.concatenate(parts)


def scale_columns(columns: slice, factor: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that multiplies columns without clipping."""

    def change(values: np.ndarray) -> np.ndarray:
        values[:, columns] *= factor
        return values

    return change


def swap_x_and_y(values: np.ndarray) -> np.ndarray:
    return values[:, [1, 0, 2, 3]]


def roll_last_fifth(values: np.ndarray) -> np.ndarray:
    first = len(values) * 4 // 5
    values[first:] = np.roll(values[first:], 1, axis=0)
    return values


def round_goal(values: np.ndarray) -> np.ndarray:
    values[:, 36:] = values[:, 36:].round(2)
    return values


def noisy(values: np.ndarray) -> np.ndarray:
    noise = 0.15 * np.random.default_rng(len(values)).standard_normal(values.shape)
    return np.clip(values + noise, -1, 1).astype(values.dtype)


def copy_actions(store: EpisodeStore) -> None:
    """Replace the actions of episode 1 by those of episode 3."""
    for name in ACTIONS:
        parts = np.split(store.steps(name), store.episode_ends[:-1])
        parts[1] = np.resize(parts[3], parts[1].shape)
        store.group[f"data/{name}"][:] = np.concatenate(parts)


def reverse_init_states(store: EpisodeStore) -> None:
    store.group["meta/rand_vec"][:] = store.rand_vecs[::-1]


def shift_init_states(store: EpisodeStore) -> None:
    """Shift the initial states of the last fifth of the episodes by one."""
    init_states = store.rand_vecs
    first = len(init_states) * 4 // 5
    init_states[first:] = np.roll(init_states[first:], 1, axis=0)
    store.group["meta/rand_vec"][:] = init_states


def truncate(store: EpisodeStore) -> None:
    """Truncate every episode halfway to its success, and mark its last step as a success."""
    recordings = []
    for recording, success_step in zip(store.recordings(), store.success_steps, strict=True):
        steps = {name: values[: max(success_step // 2, 2)].copy() for name, values in recording.steps.items()}
        steps["success"][-1] = True
        recordings.append(replace(recording, steps=steps))
    attempts = store.attempts()
    shutil.rmtree(store.path)
    write_dataset(store.path, store.info, recordings, attempts=attempts)


def relabel(store: EpisodeStore) -> None:
    """Name another task whose initial states have as many dimensions."""
    store.group.attrs["task"] = "push-v3" if store.info.task != "push-v3" else "pick-place-v3"


def change_one_success(store: EpisodeStore) -> None:
    success = store.steps("success")
    success[5] = True
    store.group["data/success"][:] = success


@dataclass(frozen=True)
class DataFault:
    """An edit of a dataset, and the name under which the doctor must rank it first."""

    change: Callable[[EpisodeStore], None]
    found_as: str


def _steps(
    names: Sequence[str], change: Callable[[np.ndarray], np.ndarray], found_as: str, episodes: slice = slice(None)
) -> DataFault:
    return DataFault(lambda store: change_steps(store, names, change, episodes), found_as)


DATA_FAULTS: dict[str, DataFault] = {
    "actions halved": _steps(ACTIONS, scale_columns(slice(4), 0.5), "actions scaled"),
    "labels halved": _steps(["action"], scale_columns(slice(4), 0.5), "actions scaled"),
    "one episode's actions halved": _steps(ACTIONS, scale_columns(slice(4), 0.5), "actions scaled", slice(6, 7)),
    "executed actions halved": _steps(["executed_action"], scale_columns(slice(4), 0.5), "executed actions changed"),
    "x reversed": _steps(ACTIONS, scale_columns(slice(0, 1), -1), "actions with a wrong sign"),
    "x and y swapped": _steps(ACTIONS, swap_x_and_y, "action axes swapped"),
    "z zero": _steps(ACTIONS, scale_columns(slice(2, 3), 0), "action axis is constant"),
    "noisy labels": _steps(["action"], noisy, "labels are noisy"),
    "labels one step late": _steps(["action"], lambda a: np.roll(a, 1, axis=0), "actions off by some steps"),
    "actions two steps early": _steps(ACTIONS, lambda a: np.roll(a, -2, axis=0), "actions off by some steps"),
    "last fifth of the actions late": _steps(ACTIONS, roll_last_fifth, "actions off by some steps"),
    "another episode's actions": DataFault(copy_actions, "actions of another episode"),
    "truncated": DataFault(truncate, "episodes truncated"),
    "success marked early": DataFault(change_one_success, "success marked falsely"),
    "last fifth of the states late": _steps(["state"], roll_last_fifth, "states off by some steps"),
    "goal rounded to 1 cm": _steps(["state"], round_goal, "states rounded"),
    "hand in millimeters": _steps(["state"], scale_columns(slice(3), 1000), "states in another unit"),
    "initial states reversed": DataFault(reverse_init_states, "initial states changed"),
    "last fifth of the initial states shifted": DataFault(shift_init_states, "initial states changed"),
    "another task's name": DataFault(relabel, "episodes of another task"),
}
"""Edits of all episodes, unless the name states otherwise."""


# -- faulty evaluations and records -------------------------------------------------------------------------------


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


def far_from_the_preset(case: Case) -> None:
    case.collect()
    case.train("trainer.lr=1e-6")


# -- sound runs of other kinds ---------------------------------------------------------------------------------------


def by_hand(case: Case) -> None:
    """Demonstrate like an operator at a keyboard: more slowly than the expert, and unsteadily."""
    case.collect()
    scripted = EpisodeStore.open(case.data)
    recorder = Recorder(Simulator(TASK), steps_after_success=10)
    expert = ScriptedExpert(TASK)
    episodes = []
    for number, init_state in enumerate(scripted.init_states):
        rng = np.random.default_rng(number)
        recorder.begin(init_state)
        while recorder.steps_left:
            if len(recorder) % 6 == 0:
                jitter = rng.normal(0, 0.15, 4)
            action = np.clip(0.4 * expert.act(recorder.state) + jitter, -1, 1).astype(np.float32)
            recorder.step(action, action)
        episodes.append(recorder.episode(attempt=number, source="teleop:ann"))
    attempts = [Attempt(init_state=e.init_state, num_steps=len(e), kept=bool(e.success.any())) for e in episodes]
    episodes = [episode for episode in episodes if episode.success.any()]
    recordings = [
        Recording(init_state=e.init_state, attempt=e.attempt, source=e.source, steps=e.steps) for e in episodes
    ]
    shutil.rmtree(case.data)
    info = replace(scripted.info, demonstrator="teleop:ann", command=f"act collect --task {TASK} --demonstrator teleop")
    write_dataset(case.data, info, recordings, attempts=attempts)
    case.train()


def with_noise(case: Case) -> None:
    case.collect("--noise", 0.2)
    case.train()


def corrected(case: Case) -> None:
    """Train on demonstrations and corrections (DAgger)."""
    case.collect()
    case.train()
    more = case.folder / "more"
    act(
        "collect",
        "--task",
        TASK,
        "--n",
        20,
        "--demonstrator",
        "policy",
        "--source",
        case.run,
        "--out",
        more,
        "--workers",
        1,
    )
    act("train", "--data", case.data, "--data", more, "--out", case.run, "--workers", 1, "--overwrite", *TRAINING)
    case.evaluate()


SOUND: dict[str, Callable[[Case], None]] = {
    "demonstrated by hand": by_hand,
    "demonstrated with noise": with_noise,
    "corrected by the expert": corrected,
}
"""Runs that must have no critical finding."""


# -- faults that a command refuses -------------------------------------------------------------------------------------


def refused_training_init_states(case: Case) -> str:
    return case.evaluate("--init-states", reuse_training_init_states(case), code=2).stderr


def refused_sampling(case: Case) -> str:
    return case.evaluate(patch=Z_SAMPLED, code=2).stderr


def refused_normalizer(case: Case) -> str:
    """Change only the normalizer, not the self-test."""
    path = case.checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["normalizer.mean"] += 0.05
    save_file(tensors, path)
    return case.evaluate(code=2).stderr


def refused_tensors(case: Case) -> str:
    tensors_missing(case)
    return case.evaluate(code=2).stderr


def refused_one_init_state(case: Case) -> str:
    data = case.folder / "one"
    act("collect", "--task", TASK, "--n", NUM, "--num-init-states", 1, "--out", data, "--workers", 1)
    return act("train", "--data", data, "--out", case.folder / "refused", code=2).stderr


def refused_undeclared_difference(case: Case) -> str:
    other = case.folder / "other"
    act("train", "--data", case.data, "--out", other, "--workers", 1, *TRAINING, "trainer.steps=300", "trainer.lr=1e-3")
    act("eval", other, "--episodes", 40, "--workers", 1)
    compared = act("compare", case.run, other, "--vary", "trainer.lr", "--out", case.folder / "comparison", code=2)
    return compared.stdout + compared.stderr


REFUSALS: dict[str, tuple[Callable[[Case], str], str]] = {
    "evaluation on training initial states": (refused_training_init_states, "were demonstrated in training"),
    "z sampled at inference": (refused_sampling, "not deterministic"),
    "normalizer changed": (refused_normalizer, "does not compute what it computed"),
    "24 tensors missing": (refused_tensors, "does not fit"),
    "training on identical initial states": (refused_one_init_state, "the same initial state"),
    "two runs with an undeclared difference": (refused_undeclared_difference, "CONFOUNDED"),
}
"""The command that must refuse each fault, and the text that its message must contain."""


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


def diagnose_data(fault: DataFault, healthy: Case, folder: Path) -> dict[str, str]:
    """Inject a fault into a copy of the healthy dataset; return the finding that the doctor ranks first."""
    shutil.copytree(healthy.data, folder / "data")
    edit(Case(folder), fault.change)
    act("doctor", folder / "data", "--out", folder / "findings.json", "--workers", 1, code=None)
    (findings,) = json.loads((folder / "findings.json").read_text(encoding="utf-8")).values()
    first: dict[str, str] = findings[0]
    return first


def main() -> None:
    """Inject every fault, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    arguments = parser.parse_args()
    healthy = make_healthy(arguments.out / "healthy")
    missed = 0
    print("| fault | found as | |\n|---|---|---|")
    fatal = [f for f in healthy.diagnose() if f["severity"] == "critical" and f["status"] in ("CONFIRMED", "SUSPECTED")]
    missed += bool(fatal)
    print(f"| none | {fatal[0]['name'] if fatal else 'nothing critical'} | |", flush=True)
    for name, make in SOUND.items():
        if arguments.only in name:
            case = Case(_fresh(arguments.out, name))
            make(case)
            critical = [f["name"] for f in case.diagnose() if f["severity"] == "critical"]
            missed += bool(critical)
            print(f"| none, {name} | {critical[0] if critical else 'nothing critical'} | |", flush=True)
    for fault in FAULTS:
        if arguments.only in fault.name:
            first = inject(fault, healthy, _fresh(arguments.out, fault.name)).diagnose()[0]
            found = first["name"] == fault.found_as and first["status"] in ("CONFIRMED", "SUSPECTED")
            missed += not found
            message = first["name"] if found else f"MISSED, but: {first['name']}: {first['message']}"
            print(f"| {fault.name} | {message} | {first['status']}, {first['severity']} |", flush=True)
    for name, data_fault in DATA_FAULTS.items():
        if arguments.only in name:
            first = diagnose_data(data_fault, healthy, _fresh(arguments.out, name))
            found = first["name"] == data_fault.found_as and first["status"] == "CONFIRMED"
            missed += not found
            message = first["name"] if found else f"MISSED, but: {first['name']}: {first['message']}"
            print(f"| {name} | {message} | {first['status']}, {first['severity']} |", flush=True)
    for name, (refuse, phrase) in REFUSALS.items():
        if arguments.only in name:
            message = refuse(healthy.copy(_fresh(arguments.out, f"refused {name}")))
            missed += phrase not in message
            print(f"| {name} | {phrase if phrase in message else f'MISSED, but: {message}'} | refused |", flush=True)
    sys.exit(1 if missed else 0)


def _fresh(out: Path, name: str) -> Path:
    """Return a folder that does not exist."""
    folder = out / name.replace(" ", "-").replace("'", "")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


if __name__ == "__main__":
    main()

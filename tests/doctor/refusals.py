"""Faults that a command refuses, with a message that names them."""

from __future__ import annotations

from collections.abc import Callable

from safetensors.numpy import load_file, save_file

from tests.conftest import act
from tests.doctor.cases import NUM, TASK, TRAINING, Case
from tests.doctor.faults import reuse_training_init_states, tensors_missing

Z_SAMPLED = """
import torch, act_kit.policies.heads.act as m
decode = m.ACT.decode
m.ACT.decode = lambda self, embedded, z: decode(self, embedded, torch.randn(16, self.config.latent_dim))
"""


def refused_training_init_states(case: Case) -> str:
    return case.evaluate("--init-states", reuse_training_init_states(case), check=2).stderr


def refused_sampling(case: Case) -> str:
    return case.evaluate(patch=Z_SAMPLED, check=2).stderr


def refused_normalizer(case: Case) -> str:
    """Change only the normalizer, not the self-test."""
    path = case.checkpoint / "model.safetensors"
    tensors = load_file(path)
    tensors["normalizer.mean"] += 0.05
    save_file(tensors, path)
    return case.evaluate(check=2).stderr


def refused_tensors(case: Case) -> str:
    tensors_missing(case)
    return case.evaluate(check=2).stderr


def refused_one_init_state(case: Case) -> str:
    data = case.folder / "one"
    act("collect", "--task", TASK, "--n", NUM, "--num-init-states", 1, "--out", data, "--workers", 1, check=0)
    return act("train", "--data", data, "--out", case.folder / "refused", check=2).stderr


def refused_undeclared_difference(case: Case) -> str:
    other = case.folder / "other"
    act(
        "train",
        "--data",
        case.data,
        "--out",
        other,
        "--workers",
        1,
        *TRAINING,
        "trainer.steps=300",
        "trainer.lr=1e-3",
        check=0,
    )
    act("eval", other, "--episodes", 40, "--workers", 1, check=0)
    compared = act("compare", case.run, other, "--vary", "trainer.lr", "--out", case.folder / "comparison", check=2)
    return compared.stdout + compared.stderr


REFUSALS: dict[str, tuple[Callable[[Case], str], str]] = {
    "evaluation on training initial states": (refused_training_init_states, "were demonstrated in training"),
    "z sampled at inference": (refused_sampling, "not deterministic"),
    "normalizer changed": (refused_normalizer, "does not reproduce"),
    "24 tensors missing": (refused_tensors, "does not fit"),
    "training on identical initial states": (refused_one_init_state, "the same initial state"),
    "two runs with an undeclared difference": (refused_undeclared_difference, "CONFOUNDED"),
}
"""The command that must refuse each fault, and the text that its message must contain."""

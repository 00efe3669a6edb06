"""Arrays that users pass to a policy: wrong types, shapes or meanings are refused with the name and the row."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from act_kit.config.training import ChunkingConfig
from act_kit.datasets.store import EpisodeStore
from act_kit.errors import ArrayError
from act_kit.policies.chunking import ActionChunker
from act_kit.policies.policy import Policy
from tests.eval.untrained import untrained_policy


@pytest.fixture
def states(reach_store: EpisodeStore) -> np.ndarray:
    return reach_store.steps("state")[[0, 30, 60]]


@pytest.fixture
def image_policy(reach_store: EpisodeStore) -> Policy:
    """A policy with two cameras at 32 px."""
    return untrained_policy([reach_store], "nobody")


def change(states: np.ndarray, row: int, columns: slice, value: float) -> np.ndarray:
    changed = states.copy()
    changed[row, columns] = value
    return changed


INVALID_STATES: dict[str, tuple[Any, str]] = {
    "another width": (lambda s: s[:, :7], r"expects states \(B, 39\)"),
    "NaN": (lambda s: change(s, 1, slice(5, 6), np.nan), "NaN or infinity in row 1"),
    "infinity": (lambda s: change(s, 2, slice(0, 1), np.inf), "NaN or infinity in row 2"),
    "a hidden goal": (lambda s: change(s, 1, slice(36, 39), 0.0), r"states in row 1 hide the goal .*_partially_obs"),
    "booleans": (lambda s: s > 0, "of type bool"),
    "objects": (lambda s: s.astype(object), "of type object"),
    "strings": (lambda s: s.astype(str), "of type <U"),
    "three axes": (lambda s: s[None], r"of shape \(1, 3, 39\)"),
    "a tensor that needs its gradient": (lambda s: torch.from_numpy(s).requires_grad_(), "tensor.detach"),
}


@pytest.mark.parametrize("wrong", INVALID_STATES.values(), ids=INVALID_STATES)
def test_invalid_states_are_refused(tiny_policy: Policy, states: np.ndarray, wrong: tuple[Any, str]) -> None:
    make, message = wrong
    for query in (tiny_policy.predict, tiny_policy.act, tiny_policy.eval_action):
        with pytest.raises(ArrayError, match=message):
            query(make(states))


EQUIVALENT_STATES: dict[str, Any] = {
    "a list": lambda s: s.tolist(),
    "a tensor": torch.from_numpy,
    "float32": lambda s: s.astype(np.float32),
    "backwards": lambda s: s[::-1].copy()[::-1],
    "mirrored": lambda s: s[:, ::-1].copy()[:, ::-1],
    "by column": np.asfortranarray,
}


@pytest.mark.parametrize("make", EQUIVALENT_STATES.values(), ids=EQUIVALENT_STATES)
def test_equivalent_states_are_accepted(tiny_policy: Policy, states: np.ndarray, make: Any) -> None:
    given = make(states)
    assert np.array_equal(tiny_policy.predict(given), tiny_policy.predict(states))
    assert np.array_equal(tiny_policy.act(given), np.clip(tiny_policy.predict(states)[:, 0], -1, 1))


def test_one_state_is_accepted_by_act_and_an_empty_batch_by_both(tiny_policy: Policy, states: np.ndarray) -> None:
    with pytest.raises(ArrayError, match=r"of shape \(39,\): expected \(B, S\). Fix: state\[None\]"):
        tiny_policy.predict(states[0])
    assert tiny_policy.act(states[0].tolist()).shape == (4,)
    assert tiny_policy.predict(states[:0]).shape == (0, 8, 4)
    tiny_policy.reset()
    assert tiny_policy.act(states[:0]).shape == (0, 4)


INVALID_MASKS: dict[str, tuple[Any, str]] = {
    "environment indices": (np.array([0, 2]), r"type int64: .* one bool .*np.isin\(np.arange\(4\), \[0, 2\]\)"),
    "zeros and ones": ([0, 1, 0], "of type int64"),
    "floats": (np.zeros(3), "of type float64"),
    "two of three": (np.array([True, False]), r"of shape \(2,\): expected \(3,\)"),
    "a column": (np.ones((3, 1), dtype=bool), r"of shape \(3, 1\)"),
    "one for all": (True, r"of shape \(\)"),
}


@pytest.mark.parametrize("mask", INVALID_MASKS.values(), ids=INVALID_MASKS)
def test_invalid_masks_are_refused(tiny_policy: Policy, states: np.ndarray, mask: tuple[Any, str]) -> None:
    tiny_policy.act(states)
    with pytest.raises(ArrayError, match=mask[1]):
        tiny_policy.reset(mask[0])
    tiny_policy.reset([True, False, True])  # type: ignore[arg-type]


def test_the_number_of_environments_changes_only_at_a_reset(tiny_policy: Policy, states: np.ndarray) -> None:
    tiny_policy.act(states)
    with pytest.raises(ArrayError, match=r"2 states: expected 3, .* Fix: policy.reset\(\)"):
        tiny_policy.act(states[:2])
    tiny_policy.reset()
    tiny_policy.act(states[:2])


def test_invalid_images_are_refused(image_policy: Policy, states: np.ndarray) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32, 3), dtype=np.uint8)
    expected = r"expects images of corner4, gripperPOV at 32x32 px, uint8 \(3, 2, 32, 32, 3\)"
    wrong: list[tuple[Any, str]] = [
        (None, "not none"),
        (images / 255, "of type float64: expected uint8, colors from 0 to 255"),
        (images.astype(np.int64), "of type int64"),
        (images.transpose(0, 1, 4, 2, 3), r"not channels first, .* Fix: images.transpose\(0, 1, 3, 4, 2\)"),
        (images[:2], "not 2 rows: expected one row of images for each state"),
        (images[:, :1], r"of shape \(3, 1, 32, 32, 3\)"),
        (images[:, :, :16], r"of shape \(3, 2, 16, 32, 3\)"),
        (images[0], r"of shape \(2, 32, 32, 3\)"),
        (images[..., 0], "of shape"),
    ]
    for given, message in wrong:
        for query in (image_policy.predict, image_policy.act):
            with pytest.raises(ArrayError, match=f"{expected}.*{message}"):
                query(states, given)
    plain = image_policy.predict(states, images)
    assert np.array_equal(image_policy.predict(states, images[::-1].copy()[::-1]), plain)
    assert np.array_equal(image_policy.predict(states, np.asfortranarray(images)), plain)
    image_policy.reset()
    assert np.array_equal(image_policy.act(states[0], images[0]), np.clip(plain[0, 0], -1, 1))
    image_policy.act(states[0])  # its chunk has not ended: no image is needed


def test_a_state_policy_refuses_images(tiny_policy: Policy, states: np.ndarray) -> None:
    with pytest.raises(ArrayError, match="acts on states only"):
        tiny_policy.act(states, np.zeros((3, 1, 32, 32, 3), dtype=np.uint8))


def test_chunks_of_other_rows_are_refused() -> None:
    executor = ActionChunker(
        ChunkingConfig(n_action_steps=3, temporal_ensemble=True, temporal_ensemble_coeff=0.1), 5, 4
    )
    chunks = np.zeros((2, 5, 4))
    for rows, message in (
        ([0], r"chunks of shape \(2, 5, 4\): expected \(1, 5, 4\)"),
        ([1, 1], r"rows \[1, 1\]: expected different numbers from 0"),
        ([-1, 0], "expected different numbers from 0"),
        ([True, False], r"of type bool: expected integers. Fix, for a mask: np.flatnonzero\(mask\)"),
        ([0.0, 1.0], "of type float64"),
    ):
        with pytest.raises(ArrayError, match=message):
            executor.plan(chunks, np.array(rows))
    with pytest.raises(ArrayError, match="of type bool"):
        executor.reset(np.array([True, False]))
    with pytest.raises(ArrayError, match="NaN or infinity in row 1"):
        executor.plan(np.stack([np.zeros((5, 4)), np.full((5, 4), np.nan)]), np.array([0, 1]))
    assert executor.plan(np.zeros((0, 5, 4)), np.arange(0)).shape == (0, 1, 4)


def test_a_copy_of_a_policy_has_its_own_chunks(tiny_policy: Policy, states: np.ndarray) -> None:
    tiny_policy.act(states)
    for twin in (copy.copy(tiny_policy), copy.deepcopy(tiny_policy), pickle.loads(pickle.dumps(tiny_policy))):
        assert np.array_equal(tiny_policy.act(states), twin.act(states))
        twin.reset()
        tiny_policy.act(states)
        tiny_policy.act(states)
        tiny_policy.act(states)

"""Action chunking: predicted chunks to actions."""

from __future__ import annotations

import numpy as np
import pytest

from act_kit.config.training import ChunkingConfig
from act_kit.policies.chunking import ActionChunker

K, A = 5, 4


def chunker(**changes: object) -> ActionChunker:
    settings: dict[str, object] = {
        "n_action_steps": 3,
        "temporal_ensemble": False,
        "temporal_ensemble_coeff": 0.1,
        **changes,
    }
    return ActionChunker(ChunkingConfig(**settings), K, A)  # type: ignore[arg-type]


def test_without_ensembling_the_first_actions_of_a_chunk_are_executed() -> None:
    chunks = np.random.default_rng(0).normal(size=(2, K, A))
    planned = chunker().plan(chunks, np.array([4, 7]))
    assert np.array_equal(planned, chunks[:, :3])


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
def test_ensembling_weighs_the_oldest_prediction_most(decay: float) -> None:
    """Compare with the paper's formula: w_i = exp(-m i), i = 0 the oldest."""
    rng = np.random.default_rng(1)
    temporal_ensemble = chunker(temporal_ensemble=True, temporal_ensemble_coeff=decay)
    history: list[np.ndarray] = []
    for t in range(2 * K + 3):
        chunk = rng.normal(size=(K, A))
        history.append(chunk)
        planned = temporal_ensemble.plan(chunk[None], np.array([0]))
        predictions = [history[query][t - query] for query in range(max(0, t - K + 1), t + 1)]
        weights = np.exp(-decay * np.arange(len(predictions)))
        expected = np.average(predictions, axis=0, weights=weights)
        assert planned.shape == (1, 1, A)
        assert np.allclose(planned[0, 0], expected)


def test_environments_are_independent_and_discard_predictions_at_reset() -> None:
    rng = np.random.default_rng(2)
    together, alone = chunker(temporal_ensemble=True), chunker(temporal_ensemble=True)
    for t in range(4):
        chunks = rng.normal(size=(2, K, A))
        if t == 2:
            together.reset(np.array([0]))
        both = together.plan(chunks, np.array([0, 1]))
        assert np.array_equal(both[1], alone.plan(chunks[1:], np.array([1]))[0])
        if t == 2:
            assert np.allclose(both[0, 0], chunks[0, 0])


def test_zero_actions_are_part_of_the_average() -> None:
    """Indexing by "action is not 0" would drop them."""
    temporal_ensemble = chunker(temporal_ensemble=True, temporal_ensemble_coeff=0.0)
    temporal_ensemble.plan(np.ones((1, K, A)), np.array([0]))
    assert np.allclose(temporal_ensemble.plan(np.zeros((1, K, A)), np.array([0])), 0.5)

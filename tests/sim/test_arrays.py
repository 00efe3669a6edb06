"""Validation of arrays passed to simulators: an invalid dtype, shape or value is named in the error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from act_kit.errors import ArrayError, ConfigError, InitialStateError
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.simulator import Simulator
from act_kit.sim.vector import VectorSimulator

(INIT_STATE,) = InitialStateDistribution("reach-v3").sample(1, seed=0, stream="collect")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (6, 4)).astype(np.float32)

INVALID_ACTIONS: dict[str, tuple[object, str]] = {
    "one action": (np.zeros(4), r"actions of shape \(4,\): expected \(T, 4\). Fix: actions\[None\]"),
    "another width": (np.zeros((5, 3)), r"of shape \(5, 3\)"),
    "a batch": (np.zeros((1, 5, 4)), r"of shape \(1, 5, 4\)"),
    "NaN": (np.array([[0, 0, 0, 0], [0, np.nan, 0, 0]]), "NaN or infinity in row 1"),
    "infinity": (np.full((5, 4), -np.inf), "in rows 0, 1, 2 and 2 more"),
    "booleans": (np.zeros((5, 4), dtype=bool), "of type bool: expected real numbers"),
    "complex numbers": (np.zeros((5, 4), dtype=complex), "of type complex128"),
    "strings": ([["0"] * 4], "of type <U1"),
    "objects": (np.zeros((5, 4), dtype=object), "of type object"),
    "None": (None, "of type object"),
    "a ragged list": ([[0.0] * 4, [0.0] * 3], "cannot be read as an array"),
    "a tensor that needs its gradient": (torch.zeros(5, 4, requires_grad=True), r"Fix, for a tensor: tensor.detach"),
    "a masked array": (np.ma.masked_array(np.zeros((5, 4)), mask=True), "masked array"),
}


@pytest.mark.parametrize("actions", INVALID_ACTIONS.values(), ids=INVALID_ACTIONS)
def test_invalid_actions_are_refused(actions: tuple[np.ndarray, str]) -> None:
    simulator = Simulator("reach-v3")
    simulator.reset(INIT_STATE)
    with pytest.raises(ArrayError, match=actions[1]):
        simulator.step_chunk(actions[0])
    assert simulator.num_steps == 0
    with VectorSimulator(0) as rows:
        rows.reset({3: INIT_STATE})
        rows.receive()
        with pytest.raises(ArrayError, match=f"actions of row 3 .*{actions[1].removeprefix('actions ')}|row 3: NaN"):
            rows.step({3: actions[0]})
        assert rows.receive() == {}


VALID_ACTIONS = {
    "a list": ACTIONS.tolist(),
    "a tensor": torch.from_numpy(ACTIONS),
    "float64": ACTIONS.astype(np.float64),
    "with negative strides": ACTIONS[::-1].copy()[::-1],
    "in column order": np.asfortranarray(ACTIONS),
    "read-only": np.frombuffer(ACTIONS.tobytes(), dtype=np.float32).reshape(6, 4),
}


@pytest.mark.parametrize("actions", VALID_ACTIONS.values(), ids=VALID_ACTIONS)
def test_convertible_actions_are_accepted(actions: np.ndarray) -> None:
    simulator = Simulator("reach-v3")
    simulator.reset(INIT_STATE)
    plain = simulator.step_chunk(ACTIONS).state
    simulator.reset(INIT_STATE)
    assert np.array_equal(simulator.step_chunk(actions).state, plain)


def test_integers_and_numbers_beyond_float32_are_clipped() -> None:
    simulator = Simulator("reach-v3")
    simulator.reset(INIT_STATE)
    plain = simulator.step_chunk(np.ones((3, 4))).state
    for actions in (np.full((3, 4), 7), np.full((3, 4), 1e300)):
        simulator.reset(INIT_STATE)
        assert np.array_equal(simulator.step_chunk(actions).state, plain)


INVALID_INIT_STATES: dict[str, tuple[object, str]] = {
    "three numbers": (INIT_STATE.array[:3], r"of shape \(3,\): expected \(6,\)"),
    "two of them": (np.stack([INIT_STATE.array] * 2), r"of shape \(2, 6\)"),
    "NaN": (np.full(6, np.nan), "NaN or infinity in rows 0"),
    "booleans": (np.zeros(6, dtype=bool), "of type bool"),
    "strings": (["0.1"] * 6, "expected real numbers"),
}


@pytest.mark.parametrize("numbers", INVALID_INIT_STATES.values(), ids=INVALID_INIT_STATES)
def test_invalid_initial_states_are_refused(numbers: tuple[np.ndarray, str]) -> None:
    with pytest.raises(InitialStateError, match=f"An initial state of reach-v3.*{numbers[1]}"):
        InitialState.of("reach-v3", numbers[0])


def test_an_initial_state_in_millimeters_is_refused() -> None:
    with pytest.raises(
        InitialStateError, match=r"goal y is 841.4 m outside .* Fix: check that the numbers are in meters"
    ):
        Simulator("reach-v3").reset(InitialState.of("reach-v3", INIT_STATE.array * 1000))
    with pytest.raises(
        InitialStateError,
        match=r"cannot be reset to ndarray: .* InitialState. Fix: InitialState.of\('reach-v3', rand_vec\)",
    ):
        Simulator("reach-v3").reset(INIT_STATE.array)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num": -1}, {"num": 2.0}, {"num": True}, {"seed": -1}, {"stream": "colect"}])
def test_errors_name_invalid_sampling_arguments(wrong: dict[str, object]) -> None:
    (name,) = wrong
    arguments: dict[str, object] = {"num": 3, "seed": 0, "stream": "collect", **wrong}
    with pytest.raises(ConfigError, match=f"^{name}="):
        InitialStateDistribution("reach-v3").sample(arguments.pop("num"), **arguments)  # type: ignore[arg-type]
    assert InitialStateDistribution("reach-v3").sample(np.int64(1), seed=np.int64(0), stream="collect") == [INIT_STATE]  # type: ignore[arg-type]


def test_errors_name_rows_without_an_episode_and_invalid_rows() -> None:
    with VectorSimulator(0) as rows:
        rows.reset({0: INIT_STATE})
        with pytest.raises(InitialStateError, match="No episode yet in row 5"):
            rows.step({0: ACTIONS, 5: ACTIONS})
        with pytest.raises(ArrayError, match="Row -1 of a vector simulator"):
            rows.reset({-1: INIT_STATE})
        with pytest.raises(InitialStateError, match="Row 1 cannot be reset to ndarray: expected an InitialState"):
            rows.reset({1: INIT_STATE.array})  # type: ignore[dict-item]
        with pytest.raises(InitialStateError, match="resample forever"):
            rows.reset({1: InitialState("reach-v3", (0.0, 0.8, 0.02, 0.0, 0.8, 0.1))})

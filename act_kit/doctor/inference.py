"""Checks that a policy computes the same in evaluation as in training."""

from __future__ import annotations

import numpy as np
import torch

from act_kit.doctor.case import RunCase, run_checks
from act_kit.doctor.finding import Result, critical, ruled_out, suspected, untested, warning
from act_kit.doctor.generalization import measure_loss
from act_kit.errors import CheckpointError
from act_kit.eval.results import success_rate
from act_kit.files import next_free_path
from act_kit.policies.normalizer import MIN_STD, Normalizer
from act_kit.policies.policy import Policy
from act_kit.sim.tasks import STATE_DIM
from act_kit.statistics import mcnemar

CHECKS = run_checks()

_ANOTHER_SPLIT = 0.25
"""Difference in standard deviations that the means of two splits of the same data never reach."""


@CHECKS.add("checkpoint does not load", "inference", "load it, and reproduce its self-test")
def loads(case: RunCase) -> Result:
    """Check that every checkpoint loads and reproduces its self-test."""
    for folder in case.checkpoints:
        try:
            Policy.load(folder)
        except CheckpointError as error:
            return critical(str(error), folder)
    num = case.policy.num_tensors
    return ruled_out(f"{num} of {num} tensors loaded; the self-test is reproduced.")


@CHECKS.add("not deterministic", "inference", "predict twice from the same states")
def deterministic(case: RunCase) -> Result:
    """Check that two predictions from the same states are equal."""
    losses = [measure_loss(case.policy, case.stores[0], np.array([0])).value for _ in range(2)]
    difference = float(np.ptp(losses))
    if difference > 1e-6:
        message = (
            f"two predictions from the same states have losses that differ by {difference:.2g}: the policy samples, "
            "or applies dropout, at inference."
        )
        method = f"{type(case.policy.model).__name__}.predict"
        return critical(message, method, "predict without sampling, and in eval mode")
    return ruled_out("Two predictions from the same states are bit-exactly equal.")


@CHECKS.add("normalizer of other data", "inference", "fit it to the training states again", "model.safetensors")
def normalized(case: RunCase) -> Result:
    """Check that the normalizer has the mean and the standard deviation of the training states."""
    case.require_training_data()
    normalizer = case.policy.normalizer.cpu()
    training_states: list[np.ndarray] = []
    for store in case.stores:
        episodes = store.steps_by_episode("state")
        training_states += [episodes[i] for i in case.split(store)[0]]
    expected = Normalizer(STATE_DIM)
    expected.fit(torch.from_numpy(np.concatenate(training_states).astype(np.float32)))
    magnified = torch.where((normalizer.std < 0.99 * MIN_STD) & ~normalizer.is_constant)[0].tolist()
    if magnified:
        return critical(
            f"state[{magnified[0]}] is divided by {float(normalizer.std[magnified[0]]):.1g}, which amplifies a "
            f"constant dimension (the smallest valid divisor is {MIN_STD})."
        )
    mean_error = (normalizer.mean - expected.mean).abs() / expected.std
    error = mean_error.maximum((normalizer.std / expected.std).log().abs())
    error = error.masked_fill(normalizer.is_constant & expected.is_constant, 0.0)
    worst = int(error.argmax())
    differs = (
        f"state[{worst}] has {float(normalizer.mean[worst]):.3f} ± {float(normalizer.std[worst]):.3f} in the "
        f"normalizer, {float(expected.mean[worst]):.3f} ± {float(expected.std[worst]):.3f} in the data"
    )
    if not float(error[worst]) < _ANOTHER_SPLIT:
        return critical(f"the normalizer does not match the training data: {differs}.")
    if float(error[worst]) > 0.01:
        return suspected(
            f"the normalizer does not exactly match the training episodes: {differs}. Were trainer.seed or "
            "trainer.val_fraction in config.yaml edited?"
        )
    return ruled_out("Mean and standard deviation of the normalizer are those of the training states.")


@CHECKS.add("training/inference mismatch", "inference", "measure the validation loss at inference", "metrics.jsonl")
def same_loss(case: RunCase) -> Result:
    """Check that the validation loss at inference equals the recorded one."""
    case.require_training_data()
    is_exact = case.config.compute.precision == "float32" or not torch.cuda.is_available()
    tolerance = 0.02 if is_exact else 0.1
    messages = []
    for folder in case.checkpoints:
        policy = Policy.load(folder)
        step = policy.metadata.step
        recorded = case.recorded.get("val/l1", {}).get(step)
        if recorded is None:
            return untested(f"val/l1 was not recorded at step {step}.")
        total, count = 0.0, 0
        for store in case.stores:
            of_store = measure_loss(policy, store, case.split(store)[1])
            total += of_store.sums_E.sum()
            count += of_store.counts_E.sum()
        loss = total / count
        message = f"L1 on the validation episodes is {loss:.4f} at inference, {recorded:.4f} recorded at step {step}"
        if abs(loss - recorded) > tolerance * recorded + 1e-4:
            return critical(
                f"the loss at inference differs from the recorded one: {message}. Inference computes something else "
                "than training, the records were edited, or they belong to another run."
            )
        messages.append(message)
    return ruled_out(f"Inference computes the same as training: {'; '.join(messages)}.")


@CHECKS.add("chunking mismatch", "inference", "run rollouts with both settings and compare", "policy.json")
def chunked_as_trained(case: RunCase) -> Result:
    """Check that evaluations use the chunking with which the checkpoint was selected."""
    selected = vars(case.config.chunking)
    if vars(case.policy.chunking) != selected:
        return critical(
            f"the checkpoint has another chunking ({case.policy.chunking}) than the run's configuration "
            f"({case.config.chunking})."
        )
    for evaluation in case.evaluations:
        used = evaluation.provenance["chunking"]
        if used != selected:
            return _effect_of_chunking(case, evaluation.folder, used)
    return ruled_out("All evaluations use the chunking with which the checkpoint was selected.")


def _effect_of_chunking(case: RunCase, folder: object, used: dict[str, float | bool]) -> Result:
    """Measure the effect of another chunking on the success rate from the same test initial states."""
    policy = case.policy.with_chunking(
        n_action_steps=int(used["n_action_steps"]), temporal_ensemble=bool(used["temporal_ensemble"])
    )
    results = case.act_from(policy, case.test_init_states)
    lost = won = 0
    for before, after in zip(case.from_fresh, results, strict=True):
        lost += before.success_once and not after.success_once
        won += after.success_once and not before.success_once
    p_value = mcnemar(lost, won)
    setting = f"{used['n_action_steps']} action steps"
    if used["temporal_ensemble"]:
        setting = "a temporal ensemble"
    elif used["n_action_steps"] == 1:
        setting = "1 action step and no temporal ensemble"
    message = (
        f"{folder} was evaluated with {setting}, the checkpoint was selected with "
        f"{case.config.chunking.n_action_steps} action steps"
        f"{' and a temporal ensemble' if case.config.chunking.temporal_ensemble else ''}: from the same "
        f"{len(results)} test initial states {success_rate(results)} instead of {success_rate(case.from_fresh)} "
        f"(p = {p_value:.2g})."
    )
    fix = case.evaluate_with(next_free_path(case.folder / "eval-test"))
    return critical(message, folder, fix) if lost > won and p_value < 0.05 else warning(message, folder, fix)

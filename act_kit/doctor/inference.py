"""Does a policy compute in use what it computed in training?"""

from __future__ import annotations

import numpy as np
import torch

from act_kit.doctor.case import RunCase
from act_kit.doctor.finding import Checks, Result, critical, ruled_out, suspected, untested, warning
from act_kit.doctor.generalization import measure_loss
from act_kit.errors import CheckpointError
from act_kit.eval.evaluate import success_rate
from act_kit.files import free_beside
from act_kit.policies.normalizer import MIN_STD, Normalizer
from act_kit.policies.policy import Policy, find_checkpoint
from act_kit.sim.tasks import STATE_DIM
from act_kit.statistics import mcnemar

CHECKS = Checks[RunCase]()

_ANOTHER_SPLIT = 0.25
"""Standard deviations by which means of other halves of the same data do not differ."""


@CHECKS.add("checkpoint does not load", stage="inference", how_to_verify="load it, and reproduce its probe")
def loads(case: RunCase) -> Result:
    """Is the checkpoint whole, and does it compute what it computed when it was saved?"""
    for folder in case.checkpoints:
        try:
            Policy.load(folder)
        except CheckpointError as error:
            return critical(f"{error}", folder, case.train_again)
    policy = case.policy
    return ruled_out(f"{policy.num_tensors} of {policy.num_tensors} tensors loaded; the probe is reproduced.")


@CHECKS.add("not deterministic", stage="inference", how_to_verify="ask twice")
def deterministic(case: RunCase) -> Result:
    """Does it say the same when asked twice?"""
    first, second = (measure_loss(case.policy, case.stores[0], np.array([0])).value for _ in range(2))
    off = abs(first - second)
    if off > 1e-6:
        return critical(
            f"asked twice about the same states, the policy's losses are {off:.2g} apart: it samples its latent z, or "
            "drops units out, in use.", "act_kit/policies/act.py", "call ACT.predict, which takes z = 0, in eval mode",
        )  # fmt: skip
    return ruled_out("Asked twice about the same states, it answers the same to the bit.")


@CHECKS.add("normaliser of other data", stage="inference", how_to_verify="fit it to the training states again")
def normalized(case: RunCase) -> Result:
    """Are states scaled as the training data are?"""
    case.require_training_data()
    path = find_checkpoint(case.folder) / "model.safetensors"
    ours = case.policy.normalizer.cpu()
    states = np.concatenate(
        [
            np.concatenate([np.split(store.steps("state"), store.episode_ends[:-1])[i] for i in case.split(store)[0]])
            for store in case.stores
        ]
    )
    expected = Normalizer(STATE_DIM)
    expected.fit(torch.from_numpy(states.astype(np.float32)))
    magnified = torch.where((ours.std < 0.99 * MIN_STD) & ~ours.is_constant)[0].tolist()
    if magnified:
        return critical(
            f"state[{magnified[0]}] is divided by {float(ours.std[magnified[0]]):.1g}, which magnifies what does not "
            f"vary (the least divisor is {MIN_STD}).", path, case.train_again,
        )  # fmt: skip
    off = ((ours.mean - expected.mean).abs() / expected.std).maximum((ours.std / expected.std).log().abs())
    off = off.masked_fill(ours.is_constant & expected.is_constant, 0.0)
    worst = int(off.argmax())
    differs = (
        f"state[{worst}] is taken to be {float(ours.mean[worst]):.3f} ± {float(ours.std[worst]):.3f}, in the data it "
        f"is {float(expected.mean[worst]):.3f} ± {float(expected.std[worst]):.3f}"
    )
    if not float(off[worst]) < _ANOTHER_SPLIT:
        return critical(f"the normaliser is not that of the training data: {differs}.", path, case.train_again)
    if float(off[worst]) > 0.01:
        return suspected(
            f"the normaliser is not exactly that of the training episodes: {differs}. Are trainer.seed and "
            "trainer.val_fraction in config.yaml those it was trained with?", path, case.train_again,
        )  # fmt: skip
    return ruled_out("Mean and spread of the normaliser are those of the training states.")


@CHECKS.add("another function in use", stage="inference", how_to_verify="measure the validation loss as it is used")
def same_loss(case: RunCase) -> Result:
    """Does the policy, used as it is in rollouts, have the loss that training recorded?"""
    case.require_training_data()
    path = case.folder / "metrics.jsonl"
    told = []
    for folder in case.checkpoints:
        policy = Policy.load(folder)
        step = policy.contract.step
        recorded = case.recorded.get("val/l1", {}).get(step)
        if recorded is None:
            return untested(f"val/l1 is not on record at step {step}.")
        losses = [measure_loss(policy, store, case.split(store)[1]) for store in case.stores]
        here = sum(loss.sums_E.sum() for loss in losses) / sum(loss.counts_E.sum() for loss in losses)
        message = f"L1 on the validation episodes is {here:.4f} in use, training recorded {recorded:.4f} at step {step}"
        tolerance = 0.02 if case.config.compute.precision == "float32" or not torch.cuda.is_available() else 0.1
        if abs(here - recorded) > tolerance * recorded + 1e-4:
            return critical(
                f"the loss in use is not the one on record: {message}. Something else is computed in use than in "
                "training, the records were edited, or they are of another run.", path, case.train_again,
            )  # fmt: skip
        told.append(message)
    return ruled_out(f"In use it computes what it did in training: {'; '.join(told)}.")


@CHECKS.add("executed otherwise", stage="inference", how_to_verify="roll out both ways from the same starts")
def chunked_as_trained(case: RunCase) -> Result:
    """Are chunks carried out in evaluation as they were when the checkpoint was chosen?"""
    chosen = vars(case.config.chunking)
    path = find_checkpoint(case.folder) / "policy.json"
    if vars(case.policy.chunking) != chosen:
        return critical(
            f"the checkpoint carries out its chunks otherwise ({case.policy.chunking}) than the run's configuration "
            f"says ({case.config.chunking}).", path, case.train_again,
        )  # fmt: skip
    for evaluation in case.evaluations:
        used = evaluation.summary["chunking"]
        if used != chosen:
            return _effect_of_chunking(case, evaluation.folder, used)
    return ruled_out("Chunks are carried out as they were when the checkpoint was chosen.")


def _effect_of_chunking(case: RunCase, folder: object, used: dict[str, float | bool]) -> Result:
    """Measure, on the same fresh starts, what carrying out chunks otherwise costs."""
    other = case.policy.with_chunking(
        n_action_steps=int(used["n_action_steps"]), temporal_ensemble=bool(used["temporal_ensemble"])
    )
    theirs = case.act_from(other, case.test_init_states)
    pairs = [(ours.success_once, others.success_once) for ours, others in zip(case.from_fresh, theirs, strict=True)]
    lost, won = pairs.count((True, False)), pairs.count((False, True))
    p_value = mcnemar(lost, won)
    how = (
        "every step with an average over chunks" if used["temporal_ensemble"] else f"{used['execute']} actions a query"
    )
    if used["n_action_steps"] == 1 and not used["temporal_ensemble"]:
        how = "every step without ensembling (1 action a query)"
    message = (
        f"{folder} was evaluated querying {how}, the checkpoint was chosen with "
        f"{case.config.chunking.n_action_steps} actions a query"
        f"{', ensembled' if case.config.chunking.temporal_ensemble else ''}: on the same {len(pairs)} fresh starts "
        f"{success_rate(theirs)} instead of {success_rate(case.from_fresh)} (p = {p_value:.2g})."
    )
    fix = case.evaluate_with(free_beside(case.folder / "eval-test"))
    return critical(message, folder, fix) if lost > won and p_value < 0.05 else warning(message, folder, fix)

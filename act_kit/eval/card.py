"""The card of an evaluation: what is needed to repeat or dispute its success rate, in one file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from act_kit.eval.results import Evaluation


def make_card(evaluation: Evaluation, latencies_s: Sequence[float] = ()) -> dict[str, Any]:
    """Return the card of an evaluation that was just run, as plain values.

    Args:
        evaluation: Evaluation of one task.
        latencies_s: Seconds from each observation to its actions; none if they were not measured.
    """
    provenance, init_state_set = evaluation.provenance, evaluation.init_state_set
    run = {"kind": "run", "name": provenance["training"]["checkpoint"], "weights": provenance["weights"]}
    lengths = [np.diff(outcome.query_steps).max(initial=0) for outcome in evaluation.outcomes]
    latency = None
    if latencies_s:
        median, late = np.percentile(latencies_s, [50, 95])
        latency = {"num_queries": len(latencies_s), "median_s": float(median), "percentile_95_s": float(late)}
    return {
        "task": evaluation.task,
        "success_once": evaluation.success.to_dict(),
        "crashes": len(evaluation.crashes),
        "policy": provenance.get("agent", run),
        "chunking": provenance["chunking"],
        "actions_per_query": int(max(lengths, default=0)),
        "latency": latency,
        "horizon": provenance["horizon"],
        "success_rule": provenance["success_rule"],
        "init_state_set": {
            "kind": init_state_set.kind,
            "seed": init_state_set.seed,
            "num": len(init_state_set.init_states),
            "hash": init_state_set.hash,
        },
        "engine": provenance["engine"],
        "versions": provenance["versions"],
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "num_cpus": os.cpu_count(),
            "device": provenance["device"],
        },
    }

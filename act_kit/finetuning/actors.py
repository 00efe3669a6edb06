"""What fine-tuning trains, an actor: a correction of the frozen policy, or a copy of the whole policy.

Shapes: B batch, Q decisions, E executed actions of a chunk, A action, F features, I inputs of an actor, S state.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from act_kit.config.finetuning import FinetuneConfig
from act_kit.config.policy import ACTConfig, TransformerConfig
from act_kit.errors import TrainingError
from act_kit.policies.chunk_model import Observation
from act_kit.policies.chunk_transformer import ChunkTransformer
from act_kit.policies.heads.residual import Residual, ResidualConfig
from act_kit.policies.policy import Policy
from act_kit.sim.tasks import ACTION_DIM, STATE_DIM


class Actor(ABC):
    """The mean of the next actions, given what is known in a decision.

    Attributes:
        policy: The policy that acts on these means.
        num_actions: Number of executed actions of a chunk, E.
        num_features: Number of features of a decision, F: the inputs of the base policy and its next actions.
    """

    policy: Policy
    num_actions: int
    num_features: int

    @abstractmethod
    def inputs_of(self, observation: Observation) -> Tensor:
        """Return the inputs (B, I) of the decisions for observations; they begin with the features."""

    @abstractmethod
    def means(self, inputs_QI: Tensor) -> Tensor:
        """Return the means of the next actions (Q, E, A), before clipping."""

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return what is trained, with names as in the policy's model."""

    def features(self, inputs_QI: Tensor) -> Tensor:
        """Return the features (Q, F)."""
        return inputs_QI[:, : self.num_features]

    def base_means(self, inputs_QI: Tensor) -> Tensor:
        """Return the next actions of the base policy (Q, E, A)."""
        size = self.num_actions * ACTION_DIM
        return self.features(inputs_QI)[:, -size:].reshape(-1, self.num_actions, ACTION_DIM)


class Correction(Actor):
    """A small network that corrects the next actions of the frozen policy."""

    def __init__(self, policy: Policy) -> None:
        """Train the correction of a policy of :func:`add_correction`."""
        assert isinstance(policy.model, Residual)
        self.policy = policy
        self.model = policy.model
        self.num_actions = self.model.config.num_actions
        self.num_features = self.model.num_inputs

    def inputs_of(self, observation: Observation) -> Tensor:
        """Return the inputs of the correction, which are the features."""
        return self.model.inputs_of(observation)[0]

    def means(self, inputs_QI: Tensor) -> Tensor:
        """Return the corrected next actions."""
        return self.model.correct(inputs_QI)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters of the correction."""
        return self.model.correction.named_parameters(prefix="correction")


class WholePolicy(Actor):
    """A copy of the policy, all of which is trained. Decisions keep whole observations, so these must be of states."""

    def __init__(self, base: Policy) -> None:
        """Train a copy of ``base``.

        Raises:
            TrainingError: It sees images, or its next actions do not follow from the observation in one step.
        """
        if base.views is not None:
            raise TrainingError("trains=policy: a policy with images can only be corrected. Fix: trains=correction")
        assert isinstance(base.model, ChunkTransformer)
        if not isinstance(base.model.config, ACTConfig):
            raise TrainingError(
                f"trains=policy: expected the model act, not {base.model.config.name}. Fix: trains=correction"
            )
        self._base = base.model
        self.model = copy.deepcopy(base.model).requires_grad_(True)
        self.policy = Policy(self.model, base.normalizer, replace(base.metadata, step=0), base.chunking)
        self.num_actions = base.chunking.n_action_steps
        self.num_features = base.model.vector_dim + self.num_actions * ACTION_DIM

    def inputs_of(self, observation: Observation) -> Tensor:
        """Return the features, both forms of the states, the tasks and, if the policy uses them, the first states."""
        with torch.no_grad():
            embedded = self._base.embed(observation)
            next_BD = self._base.predict_embedded(embedded)[:, : self.num_actions].flatten(1)
        parts = [embedded.vector_BV, next_BD, observation.states_BS, observation.raw_states_BS]
        parts.append(observation.tasks_B[:, None])
        if observation.first_states_BS is not None:
            parts.append(observation.first_states_BS)
        return torch.cat(parts, dim=1)

    def means(self, inputs_QI: Tensor) -> Tensor:
        """Return the next actions of the copy."""
        rest_QR = inputs_QI[:, self.num_features :]
        states_QS, raw_states_QS = rest_QR[:, :STATE_DIM], rest_QR[:, STATE_DIM : 2 * STATE_DIM]
        first_QS = rest_QR[:, 2 * STATE_DIM + 1 :]
        observation = Observation(
            states_BS=states_QS,
            raw_states_BS=raw_states_QS,
            tasks_B=rest_QR[:, 2 * STATE_DIM].long(),
            images_BCHW3=None,
            first_states_BS=first_QS if first_QS.shape[1] else None,
        )
        return self.model.predict(observation)[:, : self.num_actions]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Return the parameters of the copy that have a part in its actions: the encoder of the CVAE has none."""
        return ((name, value) for name, value in self.model.named_parameters() if not name.startswith("cvae_"))


def make_actor(base: Policy, config: FinetuneConfig) -> Actor:
    """Return what fine-tuning trains; in the beginning it acts as ``base`` does.

    Raises:
        TrainingError: The policy averages chunks, its model is not one of the package, an iteration has too few
            episodes for its tasks, or the whole policy cannot be trained.
    """
    _require_finetunable(base, config)
    return Correction(add_correction(base, config)) if config.trains == "correction" else WholePolicy(base)


def add_correction(base: Policy, config: FinetuneConfig) -> Policy:
    """Return a policy with a correction that is zero: it acts as ``base`` does."""
    model = base.model.config
    assert isinstance(model, TransformerConfig)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        corrected = Residual(
            ResidualConfig(
                base=model,
                num_actions=base.chunking.n_action_steps,
                scale=config.largest_correction,
                width=config.width,
                inputs=model.inputs,
                cameras=model.cameras,
                chunk_size=model.chunk_size,
            ),
            num_tasks=len(base.tasks),
        )
    corrected.base.load_state_dict(base.model.state_dict())
    return Policy(corrected, base.normalizer, replace(base.metadata, step=0), base.chunking)


def _require_finetunable(base: Policy, config: FinetuneConfig) -> None:
    model = base.model.config
    if not isinstance(model, TransformerConfig):
        raise TrainingError(f"A policy of the model '{model.name}' cannot be fine-tuned: expected act, flow or mip.")
    if base.chunking.temporal_ensemble:
        raise TrainingError("A policy that averages overlapping chunks cannot be fine-tuned. Fix: train it without.")
    fewest = fewest_episodes(base, config)
    if 0 < config.episodes < fewest:
        raise TrainingError(
            f"episodes={config.episodes}: expected at least {fewest}, so that each of the {len(base.tasks)} tasks has "
            f"new initial states in every iteration. Fix: episodes={fewest}, or leave it out."
        )


def fewest_episodes(base: Policy, config: FinetuneConfig) -> int:
    """Return the number of episodes with as many new initial states as there are tasks."""
    return math.ceil(len(base.tasks) / (1 - config.failed_fraction))

"""Options of the models, and how a model is found by its name."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, ClassVar

from act_kit.errors import ConfigError, did_you_mean
from act_kit.imports import import_object, is_object_name
from act_kit.options import Options, option, require

INPUTS = ("state", "image+proprio", "image+state")
"""Inputs of a policy; see :class:`PolicyConfig`."""

BACKBONES = ("resnet18", "small", "keypoints")
"""Image encoders; see :mod:`act_kit.policies.vision` and :mod:`act_kit.policies.keypoints`."""

FIXED_CAMERAS = ("topview", "corner", "corner2", "corner3", "corner4")
"""Cameras that do not move with the hand."""


_HEADS = "act_kit.policies.heads"


def head_names() -> list[str]:
    """Return the names of the package's own models, the files of its folder of heads."""
    entries = files("act_kit") / "policies" / "heads"
    names = [entry.name.removesuffix(".py") for entry in entries.iterdir() if entry.name.endswith(".py")]
    return sorted(name for name in names if not name.startswith("_"))


def load_head(name: str) -> None:
    """Import the package's model of that name, if there is one and its options are not known yet.

    Its file declares the options and registers the model. Only a model that is chosen is imported, because models need
    PyTorch, which is slow to import.
    """
    if name not in PolicyConfig.kinds and name in head_names():
        importlib.import_module(f"{_HEADS}.{name}")


def load_own_head(head: str) -> type[PolicyConfig]:
    """Import the user's model at ``MODULE:CLASS``, which registers it; return its class of options.

    Raises:
        ConfigError: There is none, its module cannot be imported, or the class is not registered.
    """
    require(
        is_object_name(head), f"policy.head={head}: expected MODULE:CLASS, such as policy.head=my_head:LinearModel."
    )
    _, found = import_object(head)
    kind = getattr(found, "options", None)
    if not (isinstance(kind, type) and issubclass(kind, PolicyConfig)):
        raise ConfigError(f"policy.head={head} is not a model: expected a ChunkModel with @register_model(OPTIONS).")
    return kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(Options, group="policy"):
    """The model, its inputs and its sizes. Each model adds its own options in a subclass, which is found by ``name``.

    Attributes:
        name: Name of the model: act, flow, mip, or one that a module of the user registers.
        head: MODULE:CLASS of a model of the user's own, which gives the name; MODULE is imported to load it.
        inputs: state (hand, gripper, objects and goal), image+proprio (images, hand and gripper, which a real robot
            has) or image+state.
        cameras: Cameras of the images; none for state.
        backbone: resnet18; small (four convolutions), for 64 px and a CPU; or keypoints (where objects and goal are),
            for cameras that do not move.
        backbone_weights: File with weights of a ResNet-18 under torchvision's names, whose batch statistics are then
            frozen; "" for random weights with group normalization.
        task_embeddings: File with an embedding per task (for example of its sentence) of a multi-task policy; "" to
            learn the embeddings.
        chunk_size: Number of actions predicted at once, K; an episode has 500 steps.

    Class attributes:
        kinds: Classes of options by name.
        training_only: Options that matter in training only; a policy can be trained further with other values.
        far_factors: Factors below and above its preset beyond which an option may cause a low success rate.
    """

    kinds: ClassVar[dict[str, type[PolicyConfig]]] = {}
    training_only: ClassVar[tuple[str, ...]] = ()
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {}

    name: str = ""
    head: str = ""
    inputs: str = option("state", choices=INPUTS)
    cameras: tuple[str, ...] = ()
    backbone: str = option("resnet18", choices=BACKBONES)
    backbone_weights: str = ""
    task_embeddings: str = ""
    chunk_size: int = option(16, min=1, max=500)

    def __init_subclass__(cls, group: str = "") -> None:
        super().__init_subclass__(group)
        if cls.name:
            PolicyConfig.kinds[cls.name] = cls

    @classmethod
    def kind_of(cls, values: Mapping[str, Any]) -> type[PolicyConfig]:
        """Return the class of options of the model ``values["name"]``, whose module ``values["head"]`` is imported.

        Raises:
            ConfigError: No model of that name is registered, or the module cannot be imported.
        """
        name, known = values.get("name", ""), PolicyConfig.kinds
        if values.get("head"):
            own = load_own_head(str(values["head"])).name
            require(name == own, f"policy.name={name} with policy.head={values['head']}, whose name is {own}.")
        load_head(str(name))
        names = {*known, *head_names()}
        hint = did_you_mean(str(name), sorted(names))
        require(name in known, f"policy.name={name}: choose from: {', '.join(sorted(names))}.{hint}")
        return known[name]

    @property
    def sees_images(self) -> bool:
        """True if images are among the inputs."""
        return self.inputs != "state"

    @property
    def sees_state(self) -> bool:
        """True if objects and goal are among the inputs."""
        return self.inputs != "image+proprio"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.name == type(self).name, f"policy.name={self.name}: expected {type(self).name}.")
        require(
            bool(self.cameras) == self.sees_images and len(set(self.cameras)) == len(self.cameras),
            f"policy.cameras=[{','.join(self.cameras)}] with policy.inputs={self.inputs}: expected one or more "
            "different cameras for images, such as policy.cameras=[corner4], and none for states.",
        )
        require(
            not self.backbone_weights or (self.sees_images and self.backbone == "resnet18"),
            "policy.backbone_weights: expected a policy with images and policy.backbone=resnet18.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(PolicyConfig):
    """Options of the transformer that all heads share. The limits refuse a damaged file before memory is allocated.

    Attributes:
        dim_model: Width of the tokens, D; a multiple of ``num_heads``.
        dim_feedforward: Width of the hidden layer after each attention.
        num_heads: Heads of each attention.
        encoder_layers: Depth of the observation encoder.
        decoder_layers: Depth of the chunk decoder.
        relative_positions: Add the positions of hand, objects and goal relative to each other to the inputs with state.
        velocities: Add the displacements since the previous frame, of the hand and, in the inputs with state, of the
            objects.
        recognize_task: A policy of several tasks recognizes its task from the first state of the episode instead of
            being told; from states only.
        position_weight: Weight of the error of the positions of objects and goal, with ``policy.backbone=keypoints``.
        dropout: Dropout probability of every layer, in training.
    """

    training_only: ClassVar[tuple[str, ...]] = ("dropout",)
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {
        "dim_model": (6, math.inf),
        "dim_feedforward": (12, math.inf),
    }

    dim_model: int = option(96, min=1, max=8192)
    dim_feedforward: int = option(384, min=1, max=65536)
    num_heads: int = option(4, min=1, max=256)
    encoder_layers: int = option(1, min=1, max=64)
    decoder_layers: int = option(1, min=1, max=64)
    relative_positions: bool = True
    velocities: bool = True
    recognize_task: bool = False
    position_weight: float = option(1.0, above=0)
    dropout: float = option(0.0, min=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        factor = 4 if self.sees_images else 2
        require(
            self.dim_model % self.num_heads == 0 and self.dim_model % factor == 0,
            f"policy.dim_model={self.dim_model}: expected a multiple of {factor} and of "
            f"policy.num_heads={self.num_heads}.",
        )
        require(
            not (self.recognize_task and self.sees_images),
            f"policy.recognize_task=true with policy.inputs={self.inputs}: tasks are recognized from states only. Fix: "
            "policy.inputs=state, or leave policy.recognize_task out.",
        )
        moving = set(self.cameras) - set(FIXED_CAMERAS)
        require(
            not self.finds_keypoints or (self.inputs == "image+proprio" and not moving),
            f"policy.backbone=keypoints with policy.inputs={self.inputs}, policy.cameras=[{','.join(self.cameras)}]: "
            f"expected image+proprio and cameras that do not move: {', '.join(FIXED_CAMERAS)}.",
        )

    @property
    def finds_keypoints(self) -> bool:
        """True if the policy finds objects and goal in the images, and acts on their estimated positions."""
        return self.sees_images and self.backbone == "keypoints"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACTConfig(TransformerConfig):
    """Options of ACT.

    Attributes:
        cvae_layers: Depth of the CVAE encoder, used in training only; 0 for a model without a latent.
        latent_dim: Size of the latent z.
        kl_weight: Weight of the KL term in the loss.
    """

    training_only: ClassVar[tuple[str, ...]] = ("kl_weight", *TransformerConfig.training_only)
    far_factors: ClassVar[Mapping[str, tuple[float, float]]] = {"kl_weight": (100, 10), **TransformerConfig.far_factors}

    name: str = "act"
    cvae_layers: int = option(0, min=0, max=64)
    latent_dim: int = option(32, min=1, max=4096)
    kl_weight: float = option(10.0, min=0)

r"""ACT's training step, images included: samples a second here and in lerobot (Hugging Face), from the same images.

    act collect --task button-press-topdown-v3 --randomize --n 60 --out DATA
    act render DATA --look fast --camera corner4 --size 128                                   # or 480x640
    python benchmarks/lerobot_act.py export DATA --out steps.npz
    peer/bin/python benchmarks/lerobot_act.py peer --data steps.npz --batch 8     # or 64; --small without a GPU
    python benchmarks/lerobot_act.py ours DATA --batch 8                          # likewise

lerobot needs other versions of much of what act_kit needs, so its half runs in an environment of its own and never
imports act_kit; PYTHONPATH must be unset there, since the folder ``datasets`` of this repository would hide Hugging
Face's. On a machine that lerobot supports (FFmpeg's libraries included, for videos):

    python -m venv peer
    peer/bin/pip install lerobot==0.4.4 datasets==4.1.1

With ``datasets`` 4.4 or later, this lerobot decodes a hundred PNGs to read a chunk of a hundred actions (its issue
2895); 4.1.1 gives it its best. It asks for a torch before 2.11, and both halves should run with the same one. With a
later one, such as 2.13.0, it works too (pip names the conflicts and goes on), here without what its training script
does not import: cameras, motors, torchcodec, wandb.

    python -m venv peer
    peer/bin/pip install torch==2.13.0
    peer/bin/pip install --no-deps lerobot==0.4.4 torchvision==0.25.0
    peer/bin/pip install "accelerate>=1.10,<2" "av>=15,<16" datasets==4.1.1 "deepdiff>=7.0.1,<9" \
        "diffusers>=0.27.2,<0.36" draccus==0.10.0 "einops>=0.8,<0.9" "gymnasium>=1.1.1,<2" \
        "huggingface-hub>=0.34.2,<0.36" "imageio>=2.34,<3" "jsonlines>=4,<5" "opencv-python-headless>=4.9,<4.13" \
        "packaging>=24.2,<26" "pyserial>=3.5,<4" "setuptools<81" "termcolor>=2.4,<4"

torchvision's compiled part does not load there; nothing that ACT runs on is in it.

What is timed is lerobot's own: its functions make the dataset, the policy, the optimiser and the step, put together as
``lerobot-train`` does, with its defaults (4 loader processes, AdamW, gradients clipped at 10, TF32 allowed on a GPU, no
mixed precision, means and deviations for normalizing). Its defaults are the paper's sizes. The ResNet-18 begins from
random weights, which cost the same and need no download. Pictures are stored as lerobot stores them by default, as AV1
video, and once more as its alternative, PNG; the better of the two is the one to compare with. The step alone, from one
batch that is on the device already, is timed both times. So that no epoch ends while the clock runs, at which lerobot
starts its loader processes anew, 50 steps of 64 samples need about 4,000 recorded ones.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

CAMERA = "corner4"
PROPRIOCEPTION = slice(0, 4)
"""Of a state: where the hand is, and how far the gripper is open. The rest is for the camera to see."""

WARM_UP = 10
"""Steps before the clock starts: more than the 8 batches that 4 loader processes have ready by then."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of both models, named as in :class:`act_kit.config.policy.PolicyConfig`; both have a ResNet-18 and one camera."""

    chunk_size: int
    dim_model: int
    dim_feedforward: int
    num_heads: int
    encoder_layers: int
    decoder_layers: int
    cvae_layers: int
    latent_dim: int
    dropout: float


PAPER = Sizes(
    chunk_size=100,
    dim_model=512,
    dim_feedforward=3200,
    num_heads=8,
    encoder_layers=4,
    decoder_layers=1,
    cvae_layers=4,
    latent_dim=32,
    dropout=0.1,
)
"""Those of Zhao et al. 2023, arXiv:2304.13705; of its 7 decoder layers the original code reads one."""

SMALL = Sizes(
    chunk_size=16,
    dim_model=128,
    dim_feedforward=512,
    num_heads=4,
    encoder_layers=2,
    decoder_layers=1,
    cvae_layers=2,
    latent_dim=32,
    dropout=0.1,
)


def export(options: argparse.Namespace) -> None:
    """Write a rendered dataset as plain arrays, for the process that cannot import act_kit."""
    from act_kit.datasets.images import ImageStore
    from act_kit.datasets.store import EpisodeStore

    store = EpisodeStore.open(options.dataset)
    np.savez(
        options.out,
        states=store.steps("state").astype(np.float32),
        actions=store.steps("action"),
        images=np.concatenate([frames for _, frames in ImageStore(store, CAMERA).blocks()]),
        episode_ends=store.episode_ends,
        fps=store.info.control_hz,
    )


def ours(options: argparse.Namespace) -> None:
    """Print one line of JSON: what act_kit's training does a second, from data resident on the device."""
    from act_kit.config.training import TrainConfig
    from act_kit.datasets.chunk_dataset import load_chunk_sampler
    from act_kit.datasets.frames import load_frames
    from act_kit.datasets.store import EpisodeStore
    from act_kit.overrides import compose
    from act_kit.policies.vision import FrozenBatchNorm2d, ResNet18
    from act_kit.training.distributed import SINGLE_PROCESS
    from act_kit.training.learner import Learner

    stores, device = [EpisodeStore.open(options.dataset)], torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        # Weights from a file give the ResNet frozen batch normalization, as lerobot's has.
        weights = Path(folder) / "resnet18.pth"
        torch.save(ResNet18(FrozenBatchNorm2d).state_dict(), weights)
        sizes = [f"policy.{name}={value}" for name, value in asdict(SMALL if options.small else PAPER).items()]
        sizes += [f"policy.backbone_weights={weights}", "chunking.n_action_steps=1"]
        config = compose(
            TrainConfig,
            ["policy=act_image", *sizes, *options.override],
            {"trainer.batch_size": options.batch},
        )
        frames = load_frames(stores, (CAMERA,), where=config.compute.image_storage, device=device, scratch=Path(folder))
        windows = load_chunk_sampler(
            stores,
            chunk_size=config.policy.chunk_size,
            val_fraction=0.1,
            max_share_after_success=1.0,
            seed=0,
            device=device,
            images_TCHW3=frames.images_TCHW3,
        )
        learner = Learner(config, windows, (stores[0].info.task,), device=device, group=SINGLE_PROCESS)
    rate = samples_per_s(lambda: learner.step(0), batch=options.batch, steps=options.steps, device=options.device)
    row = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "image": str(frames.views.settings),
        "sizes": "small" if options.small else "paper",
        "precision": str(learner.dtype).removeprefix("torch."),
        "frames": frames.reason,
        "samples_per_s": round(rate, 2),
        "parameters": learner.num_parameters,
        "versions": {name: version(name) for name in ("act_kit", "torch")},
    }
    print(json.dumps(row))


# -- the peer ----------------------------------------------------------------------------------------------------------


def declare_missing_operator() -> None:
    """Let torchvision be imported where its compiled part does not load, as beside a torch it was not built for.

    Its import describes ``nms`` to torch, and fails if the compiled part has not declared it. ACT does not use it.
    """
    (compiled,) = Path(str(distribution("torchvision").locate_file("torchvision"))).glob("_C.*")
    try:
        torch.ops.load_library(compiled)
    except OSError:
        torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def make_lerobot_dataset(data: dict[str, np.ndarray], root: Path, storage: str) -> None:
    """Write the steps as a LeRobotDataset whose images are stored as ``video`` or ``image``."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    image = f"observation.images.{CAMERA}"
    states = data["states"][:, PROPRIOCEPTION]
    features = {
        "observation.state": {"dtype": "float32", "shape": states.shape[1:], "names": None},
        image: {"dtype": storage, "shape": data["images"].shape[1:], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": data["actions"].shape[1:], "names": None},
    }
    dataset = LeRobotDataset.create(
        storage, fps=int(data["fps"]), features=features, root=root, use_videos=storage == "video"
    )
    begin = 0
    for end in data["episode_ends"]:
        for step in range(begin, end):
            dataset.add_frame(
                {
                    "observation.state": states[step],
                    image: data["images"][step],
                    "action": data["actions"][step],
                    "task": "act_kit",
                }
            )
        dataset.save_episode()
        begin = end
    dataset.finalize()


def samples_per_s(take_step: Callable[[], object], *, batch: int, steps: int, device: str) -> float:
    """Time ``steps`` steps after a warm-up."""

    def run(num: int) -> float:
        began = time.perf_counter()
        for _ in range(num):
            take_step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    run(WARM_UP)
    return batch * steps / run(steps)


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Count lerobot's parameters by part: the projections into a transformer count as that transformer's."""
    parts = {"backbone": "backbone", "vae_encoder": "cvae", "encoder": "encoder", "decoder": "decoder"}
    counts = dict.fromkeys(parts.values(), 0) | {"head": 0}
    for name, parameter in model.named_parameters():
        part = next((part for prefix, part in parts.items() if name.startswith(prefix)), "head")
        counts[part] += parameter.numel()
    return counts | {"total": sum(counts.values())}


def train_as_lerobot(root: Path, storage: str, sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """Time lerobot's training from a dataset on disk, and its step alone; what stands here is what its script does."""
    from accelerate import Accelerator
    from lerobot.configs.default import DatasetConfig
    from lerobot.configs.train import TrainPipelineConfig
    from lerobot.datasets.factory import make_dataset
    from lerobot.datasets.utils import cycle
    from lerobot.optim.factory import make_optimizer_and_scheduler
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    policy_config = ACTConfig(
        device=options.device,
        push_to_hub=False,
        pretrained_backbone_weights=None,
        chunk_size=sizes.chunk_size,
        n_action_steps=sizes.chunk_size,
        dim_model=sizes.dim_model,
        dim_feedforward=sizes.dim_feedforward,
        n_heads=sizes.num_heads,
        n_encoder_layers=sizes.encoder_layers,
        n_decoder_layers=sizes.decoder_layers,
        n_vae_encoder_layers=sizes.cvae_layers,
        latent_dim=sizes.latent_dim,
        dropout=sizes.dropout,
    )
    config = TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=storage, root=str(root)), policy=policy_config, batch_size=options.batch
    )
    config.validate()
    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=options.device == "cpu")
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = True
    dataset = make_dataset(config)
    policy = make_policy(cfg=policy_config, ds_meta=dataset.meta)
    preprocessor, _ = make_pre_post_processors(policy_cfg=policy_config, dataset_stats=dataset.meta.stats)
    optimizer, scheduler = make_optimizer_and_scheduler(config, policy)
    loader = torch.utils.data.DataLoader(
        dataset,
        num_workers=config.num_workers,
        batch_size=config.batch_size,
        shuffle=True,
        pin_memory=options.device == "cuda",
        prefetch_factor=2,
    )
    policy, optimizer, loader, scheduler = accelerator.prepare(policy, optimizer, loader, scheduler)
    names = ("loss", "grad_norm", "lr", "update_s", "dataloading_s")
    tracker = MetricsTracker(
        config.batch_size,
        dataset.num_frames,
        dataset.num_episodes,
        {name: AverageMeter(name) for name in names},
        accelerator=accelerator,
    )
    batches = cycle(loader)

    def update(batch: dict[str, Any]) -> None:
        update_policy(
            tracker,
            policy,
            batch,
            optimizer,
            config.optimizer.grad_clip_norm,
            accelerator=accelerator,
            lr_scheduler=scheduler,
        )

    timing = {"batch": options.batch, "steps": options.steps, "device": options.device}
    from_disk = samples_per_s(lambda: update(preprocessor(next(batches))), **timing)
    resident = preprocessor(next(batches))
    step_alone = samples_per_s(lambda: update(resident), **timing)
    return {
        storage: {"samples_per_s": round(from_disk, 2), "samples_per_s_of_step_alone": round(step_alone, 2)},
        "parameters": count_parameters(policy.model),
        "loader_processes": config.num_workers,
        "video_backend": config.dataset.video_backend,
    }


def peer(options: argparse.Namespace) -> None:
    """Print one line of JSON: what lerobot's training does a second from the exported steps."""
    with np.load(options.data) as arrays:
        data = dict(arrays)
    needed = (WARM_UP + options.steps + 1) * options.batch
    if len(data["states"]) < needed:
        raise SystemExit(f"{options.steps} steps need {needed} samples, {options.data} has {len(data['states'])}.")
    declare_missing_operator()
    row: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "batch": options.batch,
        "image": "x".join(map(str, data["images"].shape[1:3])),
        "sizes": "small" if options.small else "paper",
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_HOME"] = folder  # where Hugging Face's libraries, not yet imported, put their copies
        for storage in ("video", "image"):
            root = Path(folder) / storage
            make_lerobot_dataset(data, root, storage)
            row |= train_as_lerobot(root, storage, SMALL if options.small else PAPER, options)
    row["versions"] = {name: version(name) for name in ("lerobot", "torch", "torchvision", "datasets", "av")}
    print(json.dumps(row))


def main() -> None:
    """Run one half."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    halves = parser.add_subparsers(required=True)
    exporting = halves.add_parser("export", help=export.__doc__)
    exporting.add_argument("dataset", help="rendered from corner4")
    exporting.add_argument("--out", type=Path, required=True)
    exporting.set_defaults(run=export)
    running = halves.add_parser("ours", help=ours.__doc__)
    running.add_argument("dataset", help="rendered from corner4")
    running.add_argument("override", nargs="*", help="options of act train, such as compute.precision=float32")
    running.set_defaults(run=ours)
    peering = halves.add_parser("peer", help=peer.__doc__)
    peering.add_argument("--data", type=Path, required=True, help="what export wrote")
    peering.set_defaults(run=peer)
    for half in (running, peering):
        half.add_argument("--batch", type=int, default=8)
        half.add_argument("--steps", type=int, default=50, help="timed, after a warm-up")
        half.add_argument("--small", action="store_true", help="sizes for a machine without a GPU")
        half.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()

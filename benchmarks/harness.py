"""Where an evaluation's time goes, with the policy on this device: simulating, rendering, planning, waiting.

python benchmarks/harness.py state|image [--device cuda] [--episodes 64] [--execute 16] [--size 128]

The policies are untrained: their sizes are those of ACT at full size (chunks of 100, width 512, and for images a
convolutional network of ResNet-18's cost on one camera), so the times are those of real ones, and every episode runs to
its horizon. Simulators and renderers have the processors, the policy its device; what waits is planned together.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

from act_kit.config import TrainConfig, compose
from act_kit.eval.rollout import rollout
from act_kit.policy.act import ACT
from act_kit.sim.render import RenderSettings, Views
from act_kit.sim.starts import StartLaw
from act_kit.sim.tasks import STATE_DIM
from act_kit.sim.vector import VectorSimulator
from act_kit.sim.workers import num_cpus

TASK = "pick-place-v3"
BLOCK = 32


def convolutions() -> nn.Module:
    """Make a plain network of ResNet-18's layers: (B, 3, H, W) -> (B, 512)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.GroupNorm(8, 64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, channels in enumerate((64, 128, 256, 512)):
        for layer in range(4):
            stride = 2 if stage and not layer else 1
            layers += [nn.Conv2d(width, channels, 3, stride, 1), nn.GroupNorm(8, channels), nn.ReLU()]
            width = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Untrained:
    """An actor of ACT's cost, from states or through one camera."""

    def __init__(self, kind: str, *, device: str, execute: int, settings: RenderSettings) -> None:
        self.views = Views(cameras=("corner4",), settings=settings) if kind == "image" else None
        torch.manual_seed(0)
        self.model = ACT(compose("train", TrainConfig, ["policy=act"]).policy).to(device).eval()
        self.vision = convolutions().to(device).eval() if self.views else None
        self.into_state = nn.Linear(512, STATE_DIM).to(device)
        self.device, self.execute = device, execute

    def begin(self, row: int, start: object) -> None:
        """Nothing to forget."""

    def plan(self, states: np.ndarray, rows: np.ndarray, images: np.ndarray | None) -> np.ndarray:
        """Query in blocks; see :class:`act_kit.eval.actors.Actor`."""
        on_gpu = self.device == "cuda"
        planned = []
        with torch.inference_mode():
            for begin in range(0, len(states), BLOCK):
                state = self._move(states[begin : begin + BLOCK].astype(np.float32), on_gpu)
                if self.vision is not None and images is not None:
                    pixels = self._move(images[begin : begin + BLOCK, 0], on_gpu)
                    state = self.into_state(self.vision(pixels.permute(0, 3, 1, 2).float() / 255))
                planned.append(self.model.predict(state)[:, : self.execute])
            return torch.cat(planned).cpu().numpy()

    def _move(self, array: np.ndarray, on_gpu: bool) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if on_gpu else tensor).to(self.device, non_blocking=on_gpu)


def main() -> None:
    """Roll out and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["state", "image"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--execute", type=int, default=16)
    parser.add_argument("--size", default="128")
    options = parser.parse_args()
    device_name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    if options.device == "cpu":
        torch.set_num_threads(1)
    actor = Untrained(
        options.kind, device=options.device, execute=options.execute, settings=RenderSettings.of_size(options.size)
    )
    starts = StartLaw(TASK).sample(options.episodes, seed=0, stream="validate")
    num_workers = min(num_cpus(), len(starts))
    with VectorSimulator(TASK, num_workers, views=actor.views) as simulators:
        rollout(simulators, actor, starts[:num_workers], stop_at_success=True)  # processes, contexts, kernels
        simulators.seconds.clear()
        began = time.perf_counter()
        rollout(simulators, actor, starts, on_sizes=lambda sizes: print(sizes.reason))
        wall = time.perf_counter() - began
        spent = dict(simulators.seconds)
    busy = spent["simulating"] + spent["rendering"]
    print(
        "| policy | device | processes | episodes a minute | simulating | rendering | planning | processes waiting |\n"
        f"{'| --- ' * 8}|\n"
        f"| {options.kind} | {device_name} | {num_workers} | {60 * len(starts) / wall:.0f} "
        f"| {spent['simulating'] / num_workers / wall:.0%} | {spent['rendering'] / num_workers / wall:.0%} "
        f"| {spent['planning'] / wall:.0%} | {1 - busy / num_workers / wall:.0%} |"
    )


if __name__ == "__main__":
    main()

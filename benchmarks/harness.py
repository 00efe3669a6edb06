"""Where an evaluation's time goes, with the policy on this device: simulating, rendering, planning, waiting.

python benchmarks/harness.py state|image [--tasks MT10] [--device cuda] [--episodes 64] [--n-action-steps 16]
                             [--size 128]

The policies are untrained, of ACT's full size (policy=act, policy=act_image: one camera), so that every episode runs to
its horizon. Simulators and renderers have the processors, the policy its device; what waits is planned together.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import psutil
import torch

from act_kit.config.policy import ACTConfig
from act_kit.config.training import TrainConfig
from act_kit.overrides import compose
from act_kit.policies.agent import PolicyAgent
from act_kit.policies.heads.act import ACT
from act_kit.policies.metadata import PolicyMetadata, TrainingDataset
from act_kit.policies.normalizer import Normalizer
from act_kit.policies.policy import Policy
from act_kit.processors import num_cpus
from act_kit.rollouts.rollout import rollout
from act_kit.sim.initial_states import InitialState, InitialStateDistribution
from act_kit.sim.render import CameraViews, RenderSettings
from act_kit.sim.tasks import CONTROL_HZ, HORIZON, STATE_DIM, expand_tasks
from act_kit.sim.vector import VectorSimulator


def make_policy(
    kind: str, tasks: Sequence[str], *, device: str, n_action_steps: int, settings: RenderSettings
) -> Policy:
    """Make an untrained policy."""
    preset = {"state": "act", "image": "act_image"}[kind]
    config = compose(TrainConfig, [f"policy={preset}", f"chunking.n_action_steps={n_action_steps}"])
    cameras = config.policy.cameras
    metadata = PolicyMetadata(
        datasets=[TrainingDataset(task=task, fingerprint="", command="", init_states=[]) for task in tasks],
        horizon=HORIZON,
        control_hz=CONTROL_HZ,
        versions={},
        step=0,
        goal_visible=False,
        views=CameraViews(cameras=cameras, settings=settings) if cameras else None,
        gl_renderer="",
    )
    assert isinstance(config.policy, ACTConfig)
    torch.manual_seed(0)
    model = ACT(config.policy, num_tasks=len(tasks))
    return Policy(model, Normalizer(STATE_DIM), metadata, config.chunking, device=device)


def draw_init_states(tasks: Sequence[str], num: int) -> list[InitialState]:
    """Draw initial states, as many of each task as of any other, but for one."""
    counts = [len(range(i, num, len(tasks))) for i in range(len(tasks))]
    draws = zip(tasks, counts, strict=True)
    return [
        init_state
        for task, count in draws
        for init_state in InitialStateDistribution(task).sample(count, seed=0, stream="validate")
    ]


def main() -> None:
    """Roll out and print one row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["state", "image"])
    parser.add_argument("--tasks", default="pick-place-v3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--n-action-steps", type=int, default=16)
    parser.add_argument("--size", default="128")
    options = parser.parse_args()
    device_name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    if options.device == "cpu":
        torch.set_num_threads(1)
    tasks = expand_tasks(options.tasks)
    policy = make_policy(
        options.kind,
        tasks,
        device=options.device,
        n_action_steps=options.n_action_steps,
        settings=RenderSettings.of_size(options.size),
    )
    agent = PolicyAgent(policy)
    init_states = draw_init_states(tasks, options.episodes)
    num_workers = min(num_cpus(), len(init_states))
    with VectorSimulator(num_workers, views=agent.views) as simulators:
        # Processes, contexts, models, kernels.
        rollout(simulators, agent, draw_init_states(tasks, max(len(tasks), num_workers)))
        simulators.seconds.clear()
        began = time.perf_counter()
        rollout(simulators, agent, init_states, on_plan=lambda sizes: print(sizes.reason))
        wall = time.perf_counter() - began
        spent = dict(simulators.seconds)
        largest = max(child.memory_info().rss for child in psutil.Process().children())
    busy = spent["simulating"] + spent["rendering"]
    print(
        "| policy | tasks | device | processes | episodes a minute | simulating | rendering | planning "
        "| processes waiting | MB of the largest process |\n"
        f"{'| --- ' * 10}|\n"
        f"| {options.kind} | {len(tasks)} | {device_name} | {num_workers} | {60 * len(init_states) / wall:.0f} "
        f"| {spent['simulating'] / num_workers / wall:.0%} | {spent['rendering'] / num_workers / wall:.0%} "
        f"| {spent['planning'] / wall:.0%} | {1 - busy / num_workers / wall:.0%} | {largest / 1e6:.0f} |"
    )


if __name__ == "__main__":
    main()

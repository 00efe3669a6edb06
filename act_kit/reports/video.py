"""Videos of episodes, re-simulated bit-exactly from initial state and actions, and rendered in worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from act_kit.files import write_mp4
from act_kit.parallel import Executor
from act_kit.rollouts.episode import Episode
from act_kit.sim.render import RenderSettings, render_episode
from act_kit.sim.simulator import Simulator
from act_kit.sim.tasks import CONTROL_HZ, get_task


def select_episodes(outcomes: Sequence[Sequence[Episode]], num: int) -> list[list[int]]:
    """Select ``num`` episodes of one or several sets to show: failures first, in turn from each set.

    Returns:
        Indices of the selected episodes, by set.
    """
    order: list[tuple[bool, int, int, int]] = []
    for s, outcomes_of_set in enumerate(outcomes):
        num_seen = {False: 0, True: 0}
        for i, outcome in enumerate(outcomes_of_set):
            order.append((outcome.success_once, num_seen[outcome.success_once], s, i))
            num_seen[outcome.success_once] += 1
    chosen: list[list[int]] = [[] for _ in outcomes]
    for *_, s, i in sorted(order)[:num]:
        chosen[s].append(i)
    return chosen


def video_path(folder: Path, index: int, outcome: Episode) -> Path:
    """Return the path of the video of an episode."""
    return folder / "videos" / f"{index:04d}-{'success' if outcome.success_once else 'failure'}.mp4"


def record(executor: Executor, videos: Mapping[Path, Episode], camera: str, settings: RenderSettings, fps: int) -> None:
    """Write an mp4 of each episode to its path."""
    for path in videos:
        path.parent.mkdir(parents=True, exist_ok=True)
    jobs = [(outcome, camera, settings, fps, path) for path, outcome in videos.items()]
    deque(executor.map(write_video, jobs), maxlen=0)


def write_video(outcome: Episode, camera: str, settings: RenderSettings, fps: int, path: Path) -> None:
    """Write the mp4 of one episode, in a process that has a GL library set."""
    stride = CONTROL_HZ // fps
    steps = np.arange(0, len(outcome) + 1, stride)
    frames = render_episode(settings, [camera], outcome.init_state, _physics(outcome, stride)).images[:, 0]
    drawn = [overlay(frame, outcome, int(step), stride) for step, frame in zip(steps, frames, strict=True)]
    write_mp4(
        path, drawn + fps * drawn[-1:], fps, quality=7, macro_block_size=16
    )  # a second of the last frame shows how it ended


def _physics(outcome: Episode, stride: int) -> np.ndarray:
    """Run an episode again and return the physics before every ``stride``-th action, and after the last."""
    simulator = Simulator(outcome.init_state.task)
    simulator.reset(outcome.init_state)
    simulator.settle(outcome.settle_steps)
    physics = [simulator.physics()]
    for begin in range(0, len(outcome), stride):
        chunk = outcome.executed_action[begin : begin + stride]
        simulator.step_chunk(chunk)
        if len(chunk) == stride:
            physics.append(simulator.physics())
    return np.stack(physics)


def overlay(frame: np.ndarray, outcome: Episode, step: int, stride: int) -> np.ndarray:
    """Draw time, distance, success and the progress in the chunk on a frame, uint8 (H, W, 3).

    The bar at the bottom shows the elapsed part of the episode; its ticks are the policy queries. A query of the last
    ``stride`` steps is highlighted.
    """
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(np.ascontiguousarray(frame))
    draw = ImageDraw.Draw(image, "RGBA")
    width, height = image.size
    size = max(11, height // 22)
    font = ImageFont.load_default(size=size)
    line = size + 4
    succeeded = outcome.success_step is not None and step > outcome.success_step
    is_success = bool(step and outcome.success[step - 1])
    status = "SUCCESS" if is_success else "succeeded before" if succeeded else "not yet"
    unit = get_task(outcome.init_state.task).unit
    draw.rectangle((0, 0, width, line + 4), fill=(0, 0, 0, 150))
    draw.text((6, 3), f"{step / CONTROL_HZ:4.1f} s   {outcome.distances[step]:.3f} {unit}", fill="white", font=font)
    color = (74, 222, 128) if is_success or succeeded else (250, 204, 21)
    draw.text((width - 6, 3), status, fill=color, font=font, anchor="ra")
    bar = height - 10
    draw.rectangle((0, bar, width, height), fill=(0, 0, 0, 150))
    draw.rectangle((0, bar + 6, width * step / max(1, len(outcome)), height), fill=(96, 165, 250, 255))
    for query in outcome.query_steps[outcome.query_steps <= step]:
        is_recent = step - query < stride
        tick_color = (250, 204, 21, 255) if is_recent else (255, 255, 255, 110)
        x = width * query / max(1, len(outcome))
        draw.line((x, bar, x, height), fill=tick_color, width=3 if is_recent else 1)
    return np.asarray(image)

r"""Does act_kit execute the actions that LeRobot itself would? Its ``select_action`` in a plain loop is the reference.

    python benchmarks/lerobot_loop.py FOLDER --task reach-v3 --episodes 4

FOLDER is a pretrained LeRobot policy; lerobot 0.4 must be installed beside act_kit. First every episode runs alone:
``policy.reset()``, then the processors and ``select_action`` at every step, as in ``lerobot-eval``. Then all run at the
same time, as in ``act eval lerobot:FOLDER``. The largest difference of the executed actions is printed. Larger
batches add numbers in another order, so it is up to 3e-5 after 500 steps; from images, it can grow further once a pixel
differs (0.02). With ``--num-envs 1`` it is 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import act_kit
from act_kit.api.agents import load_lerobot
from act_kit.eval.protocols import compose_evaluation
from act_kit.policies.lerobot import LeRobotAgent
from act_kit.rollouts.episode import Episode
from act_kit.sim.vector import StepResult, VectorSimulator


def run_alone(agent: LeRobotAgent, simulators: VectorSimulator, episode: Episode) -> np.ndarray:
    """Return the actions (T, 4) of an episode by lerobot's own functions."""
    from lerobot.envs.utils import preprocess_observation

    policy, preprocess, postprocess = agent._policy, agent._preprocess, agent._postprocess
    simulators.reset({0: episode.init_state})
    policy.reset()
    executed = []
    for _ in range(len(episode.executed_action)):
        result = simulators.receive()[0]
        assert isinstance(result, StepResult)
        observation: dict[str, Any] = {}
        for key, part in agent.inputs.states.items():
            observation["agent_pos" if key == "observation.state" else "environment_state"] = result.state[part]
        if result.images is not None:
            names = [key.removeprefix("observation.images.") for key in agent.inputs.images]
            pixels = dict(zip(names, result.images, strict=True))
            observation["pixels"] = pixels.pop("observation.image", pixels)
        with torch.inference_mode():
            action = postprocess(policy.select_action(preprocess(preprocess_observation(observation))))
        executed.append(np.clip(action.to("cpu").numpy()[0], -1, 1))
        simulators.step({0: executed[-1][None]})
    simulators.receive()
    return np.array(executed)


def main() -> None:
    """Print the largest difference of each episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--num-envs", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", metavar="OPTION", help="such as served.look=lerobot")
    options = parser.parse_args()
    config = compose_evaluation(options.overrides, {})
    what = f"lerobot:{options.folder}"
    agent = load_lerobot(what, config.served, n_action_steps=None, device=options.device)
    overrides = ["baseline_episodes=0", f"rollout.num_envs={options.num_envs}"]
    evaluation = act_kit.evaluate(agent, options.task, episodes=options.episodes, overrides=overrides, workers=1)
    with VectorSimulator(1, views=agent.views) as simulators:
        for number, episode in enumerate(evaluation.outcomes):
            alone = run_alone(agent, simulators, episode)
            difference = np.abs(alone - episode.executed_action).max()
            print(f"episode {number}: {len(alone)} steps, largest difference of an action {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()

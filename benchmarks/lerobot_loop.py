r"""Does act_kit execute the actions that LeRobot itself would? Its ``select_action`` in a plain loop is the reference.

    python benchmarks/lerobot_loop.py FOLDER --task reach-v3 --episodes 4

FOLDER is a pretrained LeRobot policy; lerobot 0.4 must be installed beside act_kit. First every episode runs alone:
``policy.reset()``, then the processors and ``select_action`` at every step, as in ``lerobot-eval``. Then all run at the
same time, as in ``act eval lerobot:FOLDER``. The largest difference of the executed actions is printed. Larger
batches add numbers in another order, so it is up to 3e-5 after 500 steps; with ``--num-envs 1`` it is 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import act_kit
from act_kit.api.agents import load_lerobot
from act_kit.config.evaluation import ServedConfig
from act_kit.policies.lerobot import LeRobotAgent
from act_kit.sim.initial_states import InitialState
from act_kit.sim.simulator import Simulator


def run_alone(agent: LeRobotAgent, init_state: InitialState) -> np.ndarray:
    """Return the actions (T, 4) of an episode by lerobot's own functions, from an observation of states."""
    if agent.views:
        raise SystemExit("The policy uses images: only policies on states are compared.")
    policy, preprocess, postprocess = agent._policy, agent._preprocess, agent._postprocess
    simulator = Simulator(init_state.task)
    state = simulator.reset(init_state)
    policy.reset()
    executed = []
    while simulator.steps_left:
        observation = {key: torch.from_numpy(state[part][None]).float() for key, part in agent.inputs.states.items()}
        with torch.inference_mode():
            action = postprocess(policy.select_action(preprocess(observation)))
        executed.append(np.clip(action.to("cpu").numpy()[0], -1, 1))
        state = simulator.step_chunk(executed[-1][None]).state[-1]
    return np.array(executed)


def main() -> None:
    """Print the largest difference of each episode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--num-envs", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    what = f"lerobot:{options.folder}"
    agent = load_lerobot(what, ServedConfig(), n_action_steps=None, device=options.device)
    overrides = ["baseline_episodes=0", f"rollout.num_envs={options.num_envs}"]
    evaluation = act_kit.evaluate(agent, options.task, episodes=options.episodes, overrides=overrides, workers=1)
    for number, episode in enumerate(evaluation.outcomes):
        alone = run_alone(agent, episode.init_state)
        difference = np.abs(alone - episode.executed_action).max()
        print(f"episode {number}: {len(alone)} steps, largest difference of an action {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()

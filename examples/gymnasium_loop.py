"""Train an agent by PPO on the Gymnasium environments, in one loop as in CleanRL.

Run: python examples/gymnasium_loop.py --task reach-v3
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import act_kit.sim.gym  # noqa: F401  # registers act_kit/…

GAMMA, GAE_LAMBDA, CLIP, LEARNING_RATE = 0.99, 0.95, 0.2, 3e-4
NUM_EPOCHS, NUM_MINIBATCHES = 10, 8


def make_network(num_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(39, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, num_outputs))


class Agent(nn.Module):
    """A normal distribution over actions, and the value of a state."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = make_network(4)
        self.log_std = nn.Parameter(torch.zeros(4))
        self.critic = make_network(1)

    def actor(self, states: Tensor) -> Normal:
        return Normal(self.mean(states), self.log_std.exp())

    def value(self, states: Tensor) -> Tensor:
        value: Tensor = self.critic(states).squeeze(-1)
        return value


def as_tensor(array: np.ndarray) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32)


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """Take PPO's gradient steps on a batch of transitions."""
    num = len(batch["states"])
    for _ in range(NUM_EPOCHS):
        for chosen in torch.randperm(num).tensor_split(NUM_MINIBATCHES):
            states, actions, old_log_probs, advantages, returns = (values[chosen] for values in batch.values())
            distribution = agent.actor(states)
            ratio = (distribution.log_prob(actions).sum(-1) - old_log_probs).exp()
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            policy_loss = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
            value_loss = 0.5 * (agent.value(states) - returns).square().mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="reach-v3")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=250, help="Steps of each environment between two updates.")
    parser.add_argument("--updates", type=int, default=40)
    parser.add_argument("--workers", type=int, default=0, help="Simulation processes; 0 = this process.")
    args = parser.parse_args()

    torch.manual_seed(0)
    envs = gymnasium.make_vec(
        f"act_kit/{args.task}", num_envs=args.num_envs, num_workers=args.workers, autoreset_mode="SameStep"
    )
    envs = gymnasium.wrappers.vector.RecordEpisodeStatistics(envs)
    agent = Agent()
    optimizer = torch.optim.Adam(agent.parameters(), lr=LEARNING_RATE)
    shape = args.num_steps, args.num_envs
    states, actions = torch.zeros(*shape, 39), torch.zeros(*shape, 4)
    log_probs, rewards, values, is_last = (torch.zeros(shape) for _ in range(4))

    observation, _ = envs.reset(seed=0)
    num_success, num_episodes = 0, 0
    for number in range(1, args.updates + 1):
        for t in range(args.num_steps):
            with torch.no_grad():
                states[t] = as_tensor(observation)
                distribution = agent.actor(states[t])
                actions[t] = distribution.sample()
                log_probs[t] = distribution.log_prob(actions[t]).sum(-1)
                values[t] = agent.value(states[t])
            observation, reward, terminations, truncations, infos = envs.step(actions[t].numpy())  # clips the actions
            ended = terminations | truncations
            rewards[t], is_last[t] = as_tensor(reward), as_tensor(ended)
            for row in np.flatnonzero(truncations):  # the episode would have gone on
                with torch.no_grad():
                    rewards[t, row] += GAMMA * agent.value(as_tensor(infos["final_obs"][row]))
            if ended.any():
                num_episodes += int(ended.sum())
                num_success += int(infos["final_info"]["success"][ended].sum())
        with torch.no_grad():
            next_value, advantage = agent.value(as_tensor(observation)), torch.zeros(args.num_envs)
            advantages = torch.zeros(shape)
            for t in reversed(range(args.num_steps)):
                error = rewards[t] + GAMMA * next_value * (1 - is_last[t]) - values[t]
                advantage = error + GAMMA * GAE_LAMBDA * (1 - is_last[t]) * advantage
                advantages[t], next_value = advantage, values[t]
        batch = {
            "states": states.flatten(0, 1),
            "actions": actions.flatten(0, 1),
            "log_probs": log_probs.flatten(),
            "advantages": advantages.flatten(),
            "returns": (advantages + values).flatten(),
        }
        update(agent, optimizer, batch)
        returns = list(envs.return_queue)[-args.num_envs :]
        print(
            f"update {number}: {number * args.num_steps * args.num_envs} steps, {num_episodes} episodes, success at "
            f"their last step {num_success}, mean return {np.mean(returns) if returns else float('nan'):.0f}"
        )
    envs.close()


if __name__ == "__main__":  # processes are spawned, and import this file
    main()

"""Fine-tuning of a policy by reinforcement learning from success alone."""

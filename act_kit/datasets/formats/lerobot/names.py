"""Names that the reader and the writer of LeRobot datasets share."""

STATE, ENVIRONMENT, IMAGE_PREFIX = "observation.state", "observation.environment_state", "observation.images."

PROPRIOCEPTION = 4
"""Number of proprioceptive dimensions of the Meta-World state: hand position and gripper opening."""

EXACT_STEPS = "act_kit/steps.parquet"
"""Fields of exported steps in act_kit's own precision, and those that LeRobot has no place for; lerobot ignores it."""

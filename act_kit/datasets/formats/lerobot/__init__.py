"""LeRobot datasets (github.com/huggingface/lerobot): versions 2.0, 2.1 and 3.0 are read, 3.0 is written."""

from act_kit.datasets.formats.lerobot.read import read
from act_kit.datasets.formats.lerobot.write import write

__all__ = ["read", "write"]

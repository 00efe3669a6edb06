"""Process group of a training run, as started by ``torchrun``; a single process is a group of one.

All processes draw the same random numbers and each computes its share of every batch, so the number of processes
changes only the order of the sums.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """This process and its group.

    Attributes:
        rank: Rank of this process, from 0. Process 0 writes files and rolls out.
        size: Number of processes.
        control: Group for CPU messages, separate from the one that exchanges gradients; None for a single process.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, device: str) -> ProcessGroup:
        """Join the group that ``torchrun`` started, with one GPU per process; without ``torchrun``, a group of one.

        The timeout is long because processes wait while the first one rolls out; the watchdog detects hangs.
        """
        if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        timeout = timedelta(days=1)
        if device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=timeout)
        control = dist.new_group(backend="gloo", timeout=timeout)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), control=control)

    @property
    def is_first(self) -> bool:
        """True if this process writes files and rolls out."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a float tensor over all processes, on the CPU; blocks until all have called it."""
        total = values.detach().cpu().clone()
        if self.control is not None:
            dist.all_reduce(total, group=self.control)
        return total

    def any(self, flag: bool) -> bool:
        """Return True if the flag is true in any process; all must call it at the same step."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Wait for all processes."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def leave(self) -> None:
        """Leave the process group."""
        if self.control is not None:
            dist.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()
"""Group of one process."""

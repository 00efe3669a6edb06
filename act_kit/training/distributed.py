"""The processes of one training, as ``torchrun`` starts them; one process is a group of one.

They all draw the same random numbers and each computes its share of every batch, so their number changes nothing but
the order of the sums.
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
    """This process among those that train together.

    Attributes:
        rank: Its number, from 0. Process 0 writes files and rolls out.
        size: How many there are.
        control: Their group for messages between processors, whatever carries the gradients; None for one process.
    """

    rank: int = 0
    size: int = 1
    control: dist.ProcessGroup | None = None

    @classmethod
    def join(cls, device: str) -> ProcessGroup:
        """Join the processes that ``torchrun`` started, if it did, each with a GPU of its own.

        A process may wait for the others while one of them rolls out; whether anything hangs is the watchdog's affair.
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
        """Whether this process writes files and rolls out."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up everybody's float tensor, on the processor; it ends with everybody."""
        total = values.detach().cpu().clone()
        if self.control is not None:
            dist.all_reduce(total, group=self.control)
        return total

    def any(self, flag: bool) -> bool:
        """Whether anybody says so; asked of all at the same step."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def wait(self) -> None:
        """Wait for everybody."""
        if self.control is not None:
            dist.barrier(group=self.control)

    def leave(self) -> None:
        """Part from the others."""
        if self.control is not None:
            dist.destroy_process_group()


SINGLE_PROCESS = ProcessGroup()
"""One process."""

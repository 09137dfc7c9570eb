"""Several processes, started by torchrun: rank and number, gathering rows, summing gradients.

Without torchrun there is one process, and nothing here does anything.
"""

import os
from datetime import timedelta

import torch


def processes():
    """(rank, number of processes): (0, 1) without torchrun."""
    if "RANK" not in os.environ:
        return 0, 1
    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # No process gives up waiting: if one dies, torchrun ends them all.
        torch.distributed.init_process_group(backend, timeout=timedelta(days=1))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def wait_for_all():
    """Returns when every process has got here."""
    if processes()[1] > 1:
        torch.distributed.barrier()


def gather(rows):
    """The union of all processes' dicts on process 0, {} on the others."""
    rank, world = processes()
    if world == 1:
        return rows
    everyone = [None] * world if rank == 0 else None
    torch.distributed.gather_object(rows, everyone)
    union = {}
    for one in everyone or []:
        union |= one
    return union


def sum_over_processes(totals, parameters):
    """Replaces `totals` and the gradient of every parameter by their sums over all processes."""
    if processes()[1] == 1:
        return
    for p in parameters:
        if p.grad is None:  # this process had no row of the batch
            p.grad = torch.zeros_like(p)
    tensors = [totals, *(p.grad for p in parameters)]
    pending = [torch.distributed.all_reduce(t, async_op=True) for t in tensors]
    for work in pending:
        work.wait()


def finish():
    """Waits until process 0 has written its files, then closes the group."""
    wait_for_all()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""One training in several processes, each with a part of every batch, on a GPU of its own or on the processors."""

import ctypes
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed
import torch.multiprocessing
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException, ProcessRaisedException, spawn

from contracts.errors import CompressionFailed
from contracts.recipes import Distill
from worker.compression.order import Order, Outcome, Progress

Train: TypeAlias = Callable[[Distill, Order, Progress], Outcome]

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others before it takes them for lost."""
_PR_SET_PDEATHSIG = 1


def in_processes(train: Train, step: Distill, order: Order, progress: Progress) -> Outcome:
    """Train in as many processes as the step says; what the first of them answers. None is left behind.

    Raises:
        CompressionFailed: One of them failed, or there are not as many GPUs.
    """
    devices = torch.cuda.device_count()
    if 0 < devices < step.processes:
        raise CompressionFailed(f"distill: {step.processes} processes, and this host has {devices} GPUs: one has each")
    order.scratch.mkdir(parents=True, exist_ok=True)
    rendezvous = order.scratch / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    here, there = torch.multiprocessing.get_context("spawn").Pipe(duplex=False)
    threads = max(torch.get_num_threads() // step.processes, 1)
    context: ProcessContext = spawn(  # type: ignore[no-untyped-call]
        _member, args=(train, step, order, rendezvous, threads, there, os.getpid()), nprocs=step.processes, join=False
    )
    there.close()
    answer: Outcome | None = None
    try:
        done = False
        while not done:
            done = bool(context.join(timeout=0.1, grace_period=5))
            answer = _heard(here, progress) or answer
    except (ProcessRaisedException, ProcessExitedException) as error:
        raise CompressionFailed(f"distill: {_reason(error, step.processes)}") from error
    finally:
        for process in context.processes:
            process.kill()
            process.join()
        here.close()
    if answer is None:
        raise CompressionFailed("distill: the processes ended without an answer")
    return answer


def _heard(here: Connection, progress: Progress) -> Outcome | None:
    """Hand on what the first process has said since; what came of it, where it is done."""
    answer = None
    try:
        while here.poll():
            said: Any = here.recv()
            if isinstance(said, Outcome):
                answer = said
            else:
                progress(*said)
    except EOFError:
        pass
    return answer


def _member(
    rank: int, train: Train, step: Distill, order: Order, rendezvous: Path, threads: int, there: Connection, parent: int
) -> None:
    """One of the processes."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
    os.dup2(2, 1)  # libraries print to the output that belongs to the step's progress
    on_gpu = torch.cuda.is_available()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(step.processes),
        "LOCAL_WORLD_SIZE": str(step.processes),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(threads),
    }
    torch.set_num_threads(threads)
    if on_gpu:
        torch.cuda.set_device(rank)
    # By a file: a port that is free now may be taken in a moment.
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=step.processes,
        timeout=PATIENCE,
    )
    try:
        outcome = train(step, order, (lambda *said: there.send(said)) if rank == 0 else (lambda *_: None))
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    if rank == 0:
        there.send(outcome)


def _reason(error: ProcessRaisedException | ProcessExitedException, processes: int) -> str:
    """What became of a process, in one line: the last of its traceback."""
    if isinstance(error, ProcessExitedException):
        how = f"was killed by {error.signal_name}" if error.signal_name else f"ended with code {error.exit_code}"
        return f"process {error.error_index + 1} of {processes} {how}; take fewer processes if memory was short"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"process {error.error_index + 1} of {processes}: {lines[-1].rpartition('distill: ')[2]}"

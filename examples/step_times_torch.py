"""Names the slow process of a training with PyTorch while it runs, without JAX.

python -m examples.step_times_torch   # starts two processes on this machine
"""

import socket
import time

import torch

import jaxwgc


def train(rank: int, port: int) -> None:
    """Trains on one of two processes; process 1 is slow from step 100 on."""
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    rows = torch.randn(256, 16)
    params = torch.zeros(16, requires_grad=True)
    step_times = jaxwgc.StepTimes(
        "torch", every=50, on_change=print, before_collective=True
    )
    for step in range(200):
        with step_times:  # the work of this process alone
            ((rows @ params - 1) ** 2).mean().backward()
            time.sleep(0.03 if rank == 1 and step >= 100 else 0.01)
        torch.distributed.all_reduce(params.grad)
        with torch.no_grad():
            params -= 0.05 * params.grad
            params.grad.zero_()
    if rank == 0:
        print(step_times.metrics())
        print(step_times.report())
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(port,), nprocs=2)

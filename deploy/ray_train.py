"""`syncbn train` on Ray: python deploy/ray_train.py 2 norm=sync experiment=digits

The first word is the number of workers, the others are overrides. Each worker starts the command under a torchrun of
its own: Ray runs a worker's function in a thread, and a run needs the main thread to handle signals.
"""

import os
import socket
import subprocess
import sys
import time

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer


def train(config):
    """Start a node of the run: one process, on what Ray gave this worker."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = [free.getsockname()[1]]
    dist.broadcast_object_list(port, src=0)  # rank 0's
    context = ray.train.get_context()
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1"]
    launch += [f"--nnodes={context.get_world_size()}", f"--node-rank={context.get_world_rank()}"]
    launch += [f"--master-addr={os.environ['MASTER_ADDR']}", f"--master-port={port[0]}"]
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in ranks}
    command = [*launch, "-m", "syncbn", "train", "trainer=ddp", *config["overrides"]]
    subprocess.run(command, env=environment, cwd=config["folder"], check=True)


def main():
    workers, *overrides = sys.argv[1:]
    if not any(word.startswith("run_id=") for word in overrides):
        overrides.append(f"run_id=ray-{time.strftime('%Y%m%d-%H%M%S')}")  # one for all workers
    trainer = TorchTrainer(
        train,
        train_loop_config={"overrides": overrides, "folder": os.getcwd()},
        scaling_config=ray.train.ScalingConfig(num_workers=int(workers), use_gpu=torch.cuda.is_available()),
        torch_config=TorchConfig(backend="gloo"),  # for the port alone; the run chooses its own
    )
    trainer.fit()


if __name__ == "__main__":
    main()

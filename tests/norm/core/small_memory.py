"""Two ranks that sum over three groups and are killed by kill -9: python -m tests.norm.core.small_memory

Prints the exchange of each group, and the remaining files in /dev/shm, which nothing else should use.
"""

import logging
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist

from syncbn.norm.core.exchange import exchange_for


def rank(number: int, store: str, pipe: Connection) -> None:
    logging.basicConfig(format="%(message)s")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where gloo of torch 2.8 prints its connections
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=number, world_size=2)
    names = []
    for group in [dist.group.WORLD, dist.new_group(), dist.new_group()]:
        buffer = torch.ones(3)
        exchange = exchange_for(group, buffer)
        exchange.sum(buffer)
        assert buffer.tolist() == [2, 2, 2]
        names.append(exchange.name)
    pipe.send((names, os.listdir("/dev/shm")))
    time.sleep(100)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        context = multiprocessing.get_context("spawn")
        for number in range(2):
            ours, theirs = context.Pipe()
            ranks.append((ours, context.Process(target=rank, args=(number, f"{folder}/store", theirs))))
            ranks[-1][1].start()
            theirs.close()
        for pipe, _ in ranks:
            print(*pipe.recv(), flush=True)
        for _, process in ranks:
            process.kill()
            process.join()
        status = os.statvfs("/dev/shm")
        print(f"{os.listdir('/dev/shm')} {status.f_blocks - status.f_bfree} blocks", flush=True)


if __name__ == "__main__":
    main()

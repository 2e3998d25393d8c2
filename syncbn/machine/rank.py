"""Rank process of `syncbn.doctor`: python -m syncbn.machine.rank <folder> <ranks> <rank>."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from syncbn.machine.doctor import LOST_S, examine


def main(folder: str, ranks: int, rank: int) -> None:
    """Join the other ranks through `folder`, do the work described there, and write rank 0's answer to it."""
    torch.set_num_threads(1)
    work = json.loads(Path(folder, "work.json").read_text())
    deadline = time.monotonic() + work["seconds"]
    device = torch.device("cpu")
    if work["kind"] == "cuda":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=LOST_S),
    )
    found = examine(device, work["model"], work["images"], deadline)
    if rank == 0:
        part = Path(folder, "answer.part")
        part.write_text(json.dumps(found))
        part.rename(Path(folder, "answer.json"))  # atomic: never seen half written
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

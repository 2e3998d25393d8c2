"""Ranks of the one-shot exchange that are killed, end early, are suspended, late or interrupted, or fork."""

import os
import signal
import threading
import time
from datetime import timedelta

import torch
import torch.distributed as dist

from syncbn.norm.core import compat
from syncbn.norm.core.one_shot import OneShot
from tests.norm.core.shared import expected_sum, one_shot_of, part

LENGTH = 257


def exchange_some(exchange: OneShot, first: int = 0, count: int = 5) -> None:
    """Do some sums and compare each."""
    rank, ranks = dist.get_rank(), list(range(dist.get_world_size()))
    for message in range(first, first + count):
        buffer = part(rank, message, LENGTH)
        exchange.sum(buffer)
        assert torch.equal(buffer, expected_sum(ranks, message, LENGTH))


def wait_for_a_lost_rank(how: str, in_flight: bool) -> None:
    """Lose rank 1 after some sums; the others wait for its part of the next one, and report how that ends."""
    exchange = one_shot_of(dist.group.WORLD)
    exchange_some(exchange)
    if dist.get_rank() == 1:
        _lose(how)
    buffer = torch.ones(LENGTH)
    print("waits", flush=True)
    start = time.monotonic()
    try:
        exchange.send(buffer).wait() if in_flight else exchange.sum(buffer)
    except dist.DistBackendError as error:
        print(f"told after {time.monotonic() - start:.1f} s: {error}", flush=True)
    os._exit(0)


def _lose(how: str) -> None:
    if how == "killed with a child":
        if os.fork() == 0:  # as a worker that loads data
            time.sleep(100)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "ends":
        os._exit(0)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(100)


def time_out_that_is_changed_later() -> None:
    """A wait has the group's current timeout."""
    group = dist.group.WORLD
    exchange = one_shot_of(group)
    exchange_some(exchange)
    dist.distributed_c10d._set_pg_timeout(timedelta(seconds=1), group)
    assert compat.group_timeout(group) == timedelta(seconds=1)
    if dist.get_rank() == 0:
        try:
            exchange.sum(torch.ones(3))
        except dist.DistBackendError as error:
            print(error, flush=True)
        os._exit(0)
    time.sleep(100)


def interrupted() -> None:
    """Ctrl-C while rank 0 waits for a sum, a message in flight, or room; then it continues."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in what it starts by `&`
    exchange = one_shot_of(dist.group.WORLD)
    rank, store = dist.get_rank(), compat.store_of_default_group()
    exchange_some(exchange)
    for case in ("sum", "wait", "room"):
        dist.barrier()
        buffer = torch.full((LENGTH,), float(rank + 1))
        if rank == 1:
            store.wait([case], timedelta(seconds=60))
            pendings = [exchange.send(buffer.clone()) for _ in range(6 if case == "room" else 1)]
            for pending in pendings:
                pending.wait()
        else:
            timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
            if case == "wait":
                pending = exchange.send(buffer)
            elif case == "room":
                pendings = [exchange.send(buffer.clone()) for _ in range(4)]
            timer.start()
            try:
                if case == "sum":
                    exchange.sum(buffer)
                elif case == "wait":
                    pending.wait()
                else:
                    exchange.send(buffer)
                print("not interrupted", flush=True)
            except KeyboardInterrupt:
                print(f"{case} interrupted", flush=True)
            store.set(case, "")
            if case == "sum":
                exchange_some(exchange, 100, 1)
                assert (buffer == rank + 1).all(), "its owner has it back"
                exchange_some(exchange, 101, 9)
                assert (buffer == rank + 1).all(), "and keeps it"
            elif case == "wait":
                pending.wait()
                assert (buffer == 3).all()
            else:
                rest = [exchange.send(torch.full((LENGTH,), 1.0)) for _ in range(2)]
                for pending in [*pendings, *rest]:
                    pending.wait()
        if case == "sum" and rank == 1:
            exchange_some(exchange, 100, 10)
        exchange_some(exchange, 200)
    print("all sums were right", flush=True)


def handled_signals() -> None:
    """A signal handler that returns, called repeatedly while rank 0 waits."""
    exchange = one_shot_of(dist.group.WORLD)
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(time.monotonic()))
    if dist.get_rank() == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    for message in range(5):
        if dist.get_rank() == 1:
            time.sleep(0.3)
        exchange_some(exchange, message, 1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{len(seen) > 20 if dist.get_rank() == 0 else 'late'}", flush=True)


def forked_from_a_rank() -> None:
    """A forked child can't sum, and neither it nor its end affects the ranks."""
    exchange = one_shot_of(dist.group.WORLD)
    exchange_some(exchange)
    child = os.fork()
    if child == 0:
        try:
            exchange.sum(torch.ones(3))
        except dist.DistBackendError as error:
            print(f"child: {error}", flush=True)
        with open("/proc/self/maps") as maps:
            print("maps", sum("/dev/shm" in line for line in maps), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    exchange_some(exchange, 10)


def other_file_descriptors_are_closed() -> None:
    """Code that opens and closes the files of its process, like tools that list them, doesn't release locks."""
    exchange = one_shot_of(dist.group.WORLD)
    exchange_some(exchange)
    for name in os.listdir("/proc/self/fd"):
        try:
            if "/dev/shm" in os.readlink(f"/proc/self/fd/{name}"):
                os.close(os.open(f"/proc/self/fd/{name}", os.O_RDWR))
        except FileNotFoundError:
            pass
    dist.barrier()
    if dist.get_rank() == 1:
        time.sleep(1)
    exchange_some(exchange, 10)

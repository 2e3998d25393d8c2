"""Ranks that agree on an exchange, or can't, for successive groups: the exchange that each rank chose."""

import logging
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from syncbn.norm.core import choice, compat, one_shot, segment
from syncbn.norm.core.exchange import all_sum, describe, exchange_for
from tests.norm.core.shared import asked_for


def taken(asked: list[str | None]) -> str:
    """Exchange of a new group whose ranks have these values of SYNCBN_EXCHANGE, or the error; checks its sum."""
    group = dist.new_group()
    rank, world = dist.get_rank(), dist.get_world_size()
    with asked_for(asked[rank]):
        try:
            name = exchange_for(group, torch.zeros(1)).name
        except (ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
    total = all_sum(torch.full((3,), 1.0 + rank), group)
    assert total.tolist() == [world * (world + 1) / 2] * 3
    return name


def on_rank(number: int, how: Callable[[], Any], asked: str | None) -> tuple[str, list[str]]:
    """Exchange of two groups if one rank is in a different situation, and its log."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(choice.__name__)
    logger.addHandler(handler)
    choice._said.clear()
    try:
        with how() if dist.get_rank() == number else patch.dict({}):
            first, second = (taken([asked] * dist.get_world_size()) for _ in range(2))
    finally:
        logger.removeHandler(handler)
    assert first.split()[0] == second.split()[0]
    return first, messages


def no_compiler() -> Any:
    return patch.object(one_shot, "functions", lambda: "no C++ compiler was found")


def no_time_out() -> Any:
    def refuse(group: dist.ProcessGroup) -> None:
        raise RuntimeError("torch 3.0 doesn't show a group's time-out")

    return patch.object(compat, "group_timeout", refuse)


def not_linux() -> Any:
    return patch.object(choice.sys, "platform", "darwin")


def another_host() -> Any:
    return patch.object(segment, "host_id", lambda: "another")


def no_folder() -> Any:
    return patch.object(segment, "FOLDER", "/nowhere")


@contextmanager
def a_limit_on_the_size_of_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def another_process_by_that_number() -> Iterator[None]:
    """Simulate a machine with the same boot id, such as a clone of a running one, where the file differs."""
    invite = segment.Segment.invitation
    other = segment.Segment.create(one_shot.segment_size(dist.get_world_size()))

    def lie(self: segment.Segment) -> segment.Invitation:
        return invite(self)._replace(file=invite(other).file)

    with patch.object(segment.Segment, "invitation", lie):
        yield


@contextmanager
def a_file_that_cant_be_opened() -> Iterator[None]:
    def refuse(path: str) -> os.stat_result:
        raise PermissionError(13, "Permission denied", path)

    with patch.object(segment.os, "stat", refuse):
        yield


def kinds_of_buffers() -> dict[str, str]:
    """Exchange of buffers that aren't floats in this process's memory, in a group that has agreed on one-shot."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    class Shell(torch.Tensor):
        pass

    group = dist.new_group()
    buffers = {
        "float64": torch.zeros(2, dtype=torch.float64),
        "float32": torch.zeros(2),
        "parameter": torch.nn.Parameter(torch.zeros(2)),
        "bfloat16": torch.zeros(2, dtype=torch.bfloat16),
        "int64": torch.zeros(2, dtype=torch.int64),
        "meta": torch.zeros(2, device="meta"),
        "subclass": torch.zeros(2).as_subclass(Shell),
        "fake": FakeTensorMode().from_tensor(torch.zeros(2)),
    }
    with asked_for("one_shot"):
        kinds = {name: exchange_for(group, buffer).name for name, buffer in buffers.items()}
    mode = FlopCounterMode(display=False) if dist.get_rank() == 0 else patch.dict({})
    with mode:  # on one rank only: it must not wait in a different exchange than the others
        assert all_sum(torch.ones(2), group).tolist() == [dist.get_world_size()] * 2
    for name in ("bfloat16", "int64"):
        exchange_for(group, buffers[name]).sum(buffers[name])
    return kinds


def destroyed_group() -> str:
    group = dist.new_group()
    dist.barrier()  # the other rank may still be connecting
    dist.destroy_process_group(group)
    return describe(group, torch.ones(1))


def fake_backend(asked: str | None = None) -> str:
    """A backend that only simulates communication, on one process."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        with asked_for(asked):
            return describe(dist.group.WORLD, torch.ones(1))
    finally:
        dist.destroy_process_group()

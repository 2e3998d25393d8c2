"""How the ranks of a group sum: agreed by all of them, once."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch.distributed as dist
from torch.distributed import ProcessGroup

from syncbn.norm.core import compat

if TYPE_CHECKING:
    from syncbn.norm.core.one_shot import OneShot
    from syncbn.norm.core.segment import Invitation, Segment

VARIABLE = "SYNCBN_EXCHANGE"
CHOICES = ("collective", "one_shot")
_LOG = logging.getLogger(__name__)
_said: list[str] = []
_T = TypeVar("_T")


class _Offer(NamedTuple):
    """What a rank tells the others first.

    Attributes:
        choice: what its SYNCBN_EXCHANGE says.
        obstacle: why it can't share memory.
        host: the same on ranks that may.
        invitation: to the first rank's segment.
    """

    choice: str
    obstacle: str = ""
    host: str = ""
    invitation: Invitation | None = None


def agree(group: ProcessGroup) -> OneShot | str:
    """The exchange through shared memory, where all ranks can have it, or else why the collective serves.

    Every rank of the group calls it at the same place. The environment variable SYNCBN_EXCHANGE forces a choice:
    `collective`, or `one_shot` to fail where there is none.

    Raises:
        ValueError: a value of SYNCBN_EXCHANGE that doesn't exist, or isn't the same on all ranks.
        RuntimeError: SYNCBN_EXCHANGE=one_shot, and it can't be had.
    """
    choice = os.environ.get(VARIABLE, "")
    try:
        backends = dist.get_backend_config(group)
    except (KeyError, TypeError, ValueError):
        return _refused(choice, "the process group was destroyed, or isn't torch's")
    if "cpu:gloo" not in backends.split(","):
        # Backends that only pretend to communicate would pretend to agree. They are the same on all ranks.
        return _refused(choice, f"the group's backend is {backends}, and it takes gloo")
    offer, segment = _offer(choice, group)
    offers = _gather(offer, group)
    _check_choices([offer.choice for offer in offers], group)
    if choice == "collective":
        return f"{VARIABLE}=collective"
    obstacles = [offer.obstacle for offer in offers]
    if not any(obstacles):
        if len({offer.host for offer in offers}) > 1:
            return _refused(choice, "the ranks are on several hosts, or in containers that don't see each other")
        assert offers[0].invitation is not None
        segment, obstacle = _join(segment, offers[0].invitation, group)
        obstacles = _gather(obstacle, group)
    if any(obstacles):
        ranks = dist.get_process_group_ranks(group)
        found = [f"rank {rank}: {text}" for rank, text in zip(ranks, obstacles, strict=True) if text]
        return _refused(choice, "; ".join(found))
    assert segment is not None
    from syncbn.norm.core.one_shot import OneShot

    return OneShot(segment, group)


def _offer(choice: str, group: ProcessGroup) -> tuple[_Offer, Segment | None]:
    """What this rank can do, and the first rank's segment."""
    if choice == "collective":
        return _Offer(choice), None
    if sys.platform != "linux":
        return _Offer(choice, "it takes Linux"), None
    from syncbn.norm.core import one_shot, segment

    if isinstance(why := one_shot.functions(), str):
        return _Offer(choice, why), None
    try:
        compat.group_timeout(group)  # without it a wait could have no end
        host = segment.host_id()
        if group.rank() != 0:
            return _Offer(choice, host=host), None
        made = segment.Segment.create(one_shot.segment_size(group.size()))
        return _Offer(choice, host=host, invitation=made.invitation()), made
    except OSError as error:
        return _Offer(choice, _say_once(str(error))), None
    except RuntimeError as error:
        return _Offer(choice, str(error)), None


def _join(segment: Segment | None, invitation: Invitation, group: ProcessGroup) -> tuple[Segment | None, str]:
    """The segment, in which this rank holds its lock, and what went wrong."""
    from syncbn.norm.core.segment import Segment

    try:
        segment = segment or Segment.open(invitation)
        segment.lock(group.rank())
    except OSError as error:
        return None, _say_once(str(error))
    return segment, ""


def _check_choices(choices: list[str], group: ProcessGroup) -> None:
    ranks = dist.get_process_group_ranks(group)
    for rank, choice in zip(ranks, choices, strict=True):
        if choice not in ("", *CHOICES):
            raise ValueError(
                f"{VARIABLE} must be {' or '.join(CHOICES)}, or unset for the fastest that works; "
                f"rank {rank} has {choice!r}"
            )
    if len(set(choices)) > 1:
        raise ValueError(f"{VARIABLE} must be the same on all ranks; in the order of ranks {ranks} it is {choices}")


def _refused(choice: str, why: str) -> str:
    if choice == "one_shot":
        raise RuntimeError(f"{VARIABLE}=one_shot, but the ranks can't share memory: {why}")
    _LOG.debug("sums over ranks go by the process group's all-reduce: %s", why)
    return why


def _say_once(why: str) -> str:
    """Log what keeps ranks of one host from sharing memory, for the first group of a process that falls back."""
    if not _said:
        _said.append(why)
        _LOG.warning(
            "ranks have no memory to share (%s), so sums go by the process group's all-reduce, which takes longer: a "
            "container gets more by --shm-size, and SYNCBN_EXCHANGE=collective says that none is wanted",
            why,
        )
    return why


def _gather(mine: _T, group: ProcessGroup) -> list[_T]:
    """Every rank's, in their order."""
    answers = [mine] * group.size()
    dist.all_gather_object(answers, mine, group)
    return answers

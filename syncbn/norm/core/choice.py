"""Choice of the exchange by which a group sums, agreed once by all its ranks."""

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
    """A rank's first message to the others.

    Attributes:
        choice: value of its SYNCBN_EXCHANGE.
        obstacle: why it can't share memory.
        host: host id, equal on ranks that may share memory.
        invitation: invitation to the first rank's segment.
    """

    choice: str
    obstacle: str = ""
    host: str = ""
    invitation: Invitation | None = None


def agree(group: ProcessGroup) -> OneShot | str:
    """Agree on the exchange through shared memory if all ranks can use it; otherwise returns why not.

    Every rank of the group must call it at the same place. The environment variable SYNCBN_EXCHANGE forces a choice:
    `collective`, or `one_shot`, which fails if it isn't available.

    Raises:
        ValueError: an unknown value of SYNCBN_EXCHANGE, or different values on the ranks.
        RuntimeError: SYNCBN_EXCHANGE=one_shot, which isn't available.
    """
    choice = os.environ.get(VARIABLE, "")
    try:
        backends = dist.get_backend_config(group)
    except (KeyError, TypeError, ValueError):
        return _refused(choice, "the process group was destroyed, or isn't torch's")
    if "cpu:gloo" not in backends.split(","):
        # Backends that only simulate communication would simulate agreement. All ranks have the same backend.
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
    """Offer of this rank; the first rank's includes its segment."""
    if choice == "collective":
        return _Offer(choice), None
    if sys.platform != "linux":
        return _Offer(choice, "it takes Linux"), None
    from syncbn.norm.core import one_shot, segment

    if isinstance(why := one_shot.functions(), str):
        return _Offer(choice, why), None
    try:
        compat.group_timeout(group)  # without it a wait could be endless
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
    """Open the segment and take this rank's lock; returns it and what went wrong."""
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
        _check_choice(choice, f"rank {rank} has")
    if len(set(choices)) > 1:
        raise ValueError(f"{VARIABLE} must be the same on all ranks; in the order of ranks {ranks} it is {choices}")


def _check_choice(choice: str, who: str) -> None:
    if choice not in ("", *CHOICES):
        raise ValueError(
            f"{VARIABLE} must be {' or '.join(CHOICES)}, or unset for the fastest that works; {who} {choice!r}"
        )


def _refused(choice: str, why: str) -> str:
    _check_choice(choice, "got")
    if choice == "one_shot":
        raise RuntimeError(f"{VARIABLE}=one_shot, but the ranks can't share memory: {why}")
    _LOG.debug("sums over ranks go by the process group's all-reduce: %s", why)
    return why


def _say_once(why: str) -> str:
    """Log why ranks of one host don't share memory, for the first group of a process that falls back."""
    if not _said:
        _said.append(why)
        _LOG.warning(
            "ranks have no memory to share (%s), so sums go by the process group's all-reduce, which takes longer: a "
            "container gets more by --shm-size, and SYNCBN_EXCHANGE=collective says that none is wanted",
            why,
        )
    return why


def _gather(mine: _T, group: ProcessGroup) -> list[_T]:
    """Gather from all ranks, in rank order."""
    answers = [mine] * group.size()
    dist.all_gather_object(answers, mine, group)
    return answers

"""Watchdog thread of each rank: detects a hang, finds the responsible rank, and ends the process."""

import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch.distributed as dist

from syncbn.norm.core import compat
from syncbn.training.whereabouts import place_of

EXIT_CODE = 124  # as timeout(1)
_CONNECT_S = 10.0
_starts = itertools.count()


class Rank(NamedTuple):
    """Status that a rank publishes to the others.

    Attributes:
        tick: counter that increases while the process runs.
        still_s: seconds since the last progress, such as the start or end of a batch.
        limit_s: limit of `still_s`.
        waits: whether it waits for other ranks.
        place: its position, as part of a sentence.
        batch: its epoch and batch.
        ended: whether its training or test is over.
    """

    tick: int
    still_s: float
    limit_s: float
    waits: bool
    place: str
    batch: str
    ended: bool = False

    @property
    def late(self) -> bool:
        """Whether it has exceeded its limit."""
        return self.still_s > self.limit_s


class Watch(threading.Thread):
    """Observes this rank, publishes its status, and reads the others' when it hangs.

    Attributes:
        moves: counter that the training's thread increments on progress.
        in_step: whether training is in a step, which has the shorter limit.
    """

    def __init__(self, trainer: L.Trainer, model: L.LightningModule, timeout_s: float, slow_timeout_s: float) -> None:
        super().__init__(name="syncbn-watchdog", daemon=True)
        self.moves, self.in_step = 0, False
        self._trainer, self._model = trainer, model
        self._timeout_s, self._slow_timeout_s = timeout_s, slow_timeout_s
        self._interval_s = min(5.0, timeout_s / 8)
        self._watched = threading.get_ident()
        self._ended = threading.Event()
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        self._store = _store(self._interval_s) if dist.is_initialized() and self._world_size > 1 else None
        self._silence = dict.fromkeys(range(self._world_size), (-1, 0.0))  # last tick of each rank, and its age

    def end(self) -> None:
        """Stop watching: a thread that uses the store while Python exits would abort the process."""
        self._ended.set()
        self.join(timeout=5.0)

    def run(self) -> None:
        seen, still_s, before = -1, 0.0, time.monotonic()
        for tick in itertools.count():
            own = self._describe(tick, still_s)
            if self._ended.is_set():
                self._tell(own._replace(ended=True))
                return
            ranks = self._exchange(own)
            if message := verdict(ranks, self._rank):
                self._end_all(message)
            self._ended.wait(self._interval_s)
            now = time.monotonic()
            passed = min(now - before, 2 * self._interval_s)  # a suspended process hasn't hung
            still_s = still_s + passed if self.moves == seen else 0.0
            seen, before = self.moves, now

    def _describe(self, tick: int, still_s: float) -> Rank:
        batch = f"epoch {self._trainer.current_epoch + 1}, batch {self._trainer.fit_loop.batch_idx + 1}"
        if still_s < self._timeout_s / 2:
            return Rank(tick, still_s, self._timeout_s, False, "", batch)
        place = place_of(self._watched, self._model)
        limit_s = self._timeout_s if self.in_step and not place.slow else self._slow_timeout_s
        return Rank(tick, 0.0 if place.debugged else still_s, limit_s, place.waits, place.text, batch)

    def _tell(self, own: Rank) -> None:
        if self._store is not None:
            try:
                self._store.set(str(self._rank), json.dumps(own))
            except RuntimeError:  # the rank with the store is gone
                self._store = None

    def _exchange(self, own: Rank) -> dict[int, Rank]:
        """Publish the status, end if the others end, and read their status if this rank hangs."""
        self._tell(own)
        ranks = {self._rank: own}
        if self._store is None:
            return ranks
        try:
            if self._store.check(["verdict"]):
                self._end_all(None)
            keys = {rank: str(rank) for rank in range(self._world_size) if rank != self._rank}
            if own.place and self._store.check(list(keys.values())):
                for rank, answer in zip(keys, self._store.multi_get(list(keys.values())), strict=True):
                    ranks[rank] = self._heard(rank, Rank(*json.loads(answer)))
        except RuntimeError:
            self._store = None
        return ranks

    def _heard(self, rank: int, told: Rank) -> Rank:
        """Status of a rank, as long as it is updated."""
        tick, age = self._silence[rank]
        age = age + self._interval_s if tick == told.tick else 0.0
        self._silence[rank] = told.tick, age
        if told.ended or age < self._timeout_s / 2:
            return told
        place = "doesn't answer: its process was stopped, or its machine or the network is gone"
        return told._replace(still_s=age + self._timeout_s / 2, limit_s=self._timeout_s, waits=False, place=place)

    def _end_all(self, message: str | None) -> None:
        """Print the message on one rank, and end once all ranks are about to."""
        try:
            if self._store is not None:
                if message and self._store.add("speakers", 1) > 1:
                    message = None
                self._store.set("verdict", "")
                self._store.add("leaving", 1)
        except RuntimeError:
            self._store = None
        if message:
            print(f"\n{message}", file=sys.stderr, flush=True)
        deadline = time.monotonic() + 2 * self._interval_s + 8  # the others may be slow
        while self._store is not None and time.monotonic() < deadline:
            try:
                if self._store.add("leaving", 0) >= self._world_size:
                    break
            except RuntimeError:
                break
            time.sleep(0.02)
        sys.stdout.flush()
        os._exit(EXIT_CODE)


def verdict(ranks: Mapping[int, Rank], own: int) -> str | None:
    """Why the run must end; None while it may continue.

    Args:
        ranks: known status of each rank; without a store, only the own one.
        own: this rank.
    """
    culprits = [rank for rank, state in ranks.items() if state.late and not state.waits]
    if culprits:
        state = ranks[culprits[0]]
        text = f"{_named(culprits)} for {state.still_s:.0f} s in {state.batch}"
        first = f"nothing moves on {text}"
    elif ranks[own].late and all(state.late or state.ended for state in ranks.values()):
        first = f"all ranks wait for each other for {ranks[own].still_s:.0f} s in {ranks[own].batch}"
    else:
        return None
    places: dict[str, list[int]] = {}
    for rank, state in sorted(ranks.items()):
        place = "has ended" if state.ended else state.place or "goes on"
        places.setdefault(place, []).append(rank)
    lines = [f"  {_named(members)}: {place}" for place, members in places.items()]
    return "\n".join([f"{first}; the run ends with exit code {EXIT_CODE}:", *lines])


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def _store(timeout_s: float) -> Any:
    """This thread's own connection to the store of the default group; None if the store is gone."""
    shared = compat.store_of_default_group()
    before = shared.timeout
    shared.set_timeout(timedelta(seconds=_CONNECT_S))  # torch tries as long as a collective may take
    try:
        store = shared.clone()
    except RuntimeError:  # its process was killed, and this one will be asked to stop
        return None
    finally:
        shared.set_timeout(before)
    store.set_timeout(timedelta(seconds=max(10.0, timeout_s)))
    return dist.PrefixStore(f"syncbn-watchdog-{next(_starts)}", store)  # type: ignore[attr-defined]

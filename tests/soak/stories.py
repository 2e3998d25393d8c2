"""Random runs, and what happens to them: a function of a number."""

import random
from dataclasses import dataclass
from typing import Literal

Moment = Literal["progress", "seconds", "saving"]
KINDS = (
    *("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "kill", "kill a rank", "kill a worker", "suspend"),
    *("max_epochs", "max_steps", "max_time", "full disk", "remove", "rename", "move", "flip a bit", "truncate"),
    *("second start", "change", "other ranks", "again"),
)
_ON_RANKS = ("kill a rank", "other ranks")
_OF_LIMITS = ("max_epochs", "max_steps", "max_time")
_NORMS = (
    *("sync", "batch", "group", "cross_iteration", "batch_renorm", "ghost", "layer", "rms", "switchable", "spectral"),
    *("learnable_momentum", "moving_average", "decorrelated", "weight", "adaptive", "filter_response", "none"),
)
_EQUAL_ON_RANKS = ("sync", "group", "layer", "rms", "weight", "adaptive", "filter_response", "none")
_MODELS = (  # words, and how often
    (("model=mlp", "model.hidden_size=16"), 6),
    (("model=mlp", "model.hidden_size=8", "model.dropout=0.3"), 3),
    (("model=resnet18", "model.width=4"), 1),
    (("experiment=dcgan_digits", "model.width=4"), 1),
    (("experiment=fcn_scenes", "model.width=4"), 1),
)
_OF_FILES = (  # of image files, which workers read
    *("data=image_folder", "data.folder=../images", "data.image_size=16", "data.num_workers=2"),
    *("model=resnet18", "model.stem=cifar", "model.width=4"),
)
_CALLBACKS = (
    ("callbacks=default",),
    ("callbacks=to_the_end", "~callbacks.plots"),
    (
        "callbacks=[default,momentum_schedule]",
        "callbacks.momentum_schedule.start=0.9",
        "callbacks.momentum_schedule.end=0.5",
    ),
    ("callbacks=[default,norm_l1,norm_monitor,model_summary]", "~callbacks.plots"),
    ("callbacks=[default,recalibrate_norm]", "~callbacks.plots"),
    ("callbacks=[default,ema]", "~callbacks.plots"),
    ("callbacks=[default,swa]", "~callbacks.plots"),
    ("callbacks=[checkpoint,norm_statistics]",),
)
_EXTRAS = (
    (),
    ("callbacks.checkpoint.save_top_k=3",),
    ("trainer.val_check_interval=3",),
    ("trainer.check_val_every_n_epoch=2",),
    ("callbacks.early_stopping.patience=1",),
    ("callbacks.checkpoint.every_n_train_steps=3",),
)
_SPEEDS = (
    (),
    (),
    ("trainer.accumulate_grad_batches=3",),
    ("trainer.precision=bf16-mixed",),
    ("nan_policy=skip",),
    ("nan_policy=rewind", "check_ranks_every_n_steps=2"),
)
_LOGGERS = ((),) * 6 + (("logger=tensorboard",), ("logger=wandb",))

# The stories of CI: each kind once, all but the last in one process.
SHORT = (
    (70, ("SIGTERM", "kill", "again")),
    (33, ("SIGINT", "full disk", "flip a bit")),
    (16, ("SIGUSR1", "rename", "truncate")),
    (70, ("second start", "remove", "move")),
    (16, ("max_steps", "kill a worker", "max_epochs")),
    (16, ("max_time", "change")),
    (16, ("suspend",)),
    (8, ("kill a rank", "SIGHUP")),
)


@dataclass(frozen=True)
class Event:
    """Something that happens to a start of a run.

    Attributes:
        kind: one of `KINDS`.
        moment: by what the moment is told: rows in metrics.csv, seconds, or a checkpoint that is being written.
        at: the moment, as a share of the uninterrupted run.
        cold: whether the start before it is of a new Python.
    """

    kind: str
    moment: Moment
    at: float
    cold: bool


@dataclass(frozen=True)
class Story:
    """A run and the events before its end.

    Attributes:
        number: of the story, the seed of all that is random in it.
        words: of the run's command line.
        ranks: of the run.
        epochs: of the run.
        steps: in an epoch.
        events: in order.
    """

    number: int
    words: tuple[str, ...]
    ranks: int
    epochs: int
    steps: int
    events: tuple[Event, ...]

    def __str__(self) -> str:
        events = ", ".join(f"{event.kind} at {event.at:.2f} by {event.moment}" for event in self.events)
        return f"{' '.join(self.words)} [{events}]"


def story(number: int, kinds: tuple[str, ...] = ()) -> Story:
    """The story of a number: the same for the same number.

    Args:
        number: seed.
        kinds: events to have, instead of random ones.
    """
    draw = random.Random(number)
    ranks = 2 if set(kinds) & set(_ON_RANKS) else draw.choice((1, 1, 1, 2))
    workers = "kill a worker" in kinds or (not kinds and draw.random() < 0.1)
    kinds = kinds or tuple(draw.choice(_common(ranks, workers)) for _ in range(draw.randint(1, 3)))
    model = draw.choices([words for words, _ in _MODELS], [weight for _, weight in _MODELS])[0]
    model = _OF_FILES if workers else model
    steps, epochs = draw.choice((6, 9, 20)), draw.choice((2, 3, 5))
    words = [
        *model,
        *(f"trainer.{key}={value}" for key, value in _sizes(steps, draw).items()),
        f"trainer.log_every_n_steps={draw.choice((1, 1, 2))}",
        f"data.batch_size={draw.choice((8, 16))}",
        f"seed={draw.randrange(100)}",
        "trainer.accelerator=cpu",
        "threads=1",
        "resume=auto",
    ]
    events = _events(kinds, draw)
    by_limits = any(event.kind in ("max_epochs", "max_steps") for event in events)
    # A schedule is made for the epochs and steps of each start, so that of a limited one has no end and no warm-up, and
    # that of the norms' momentum is left out.
    schedule = ("scheduler=constant", "scheduler.warmup_fraction=0")
    words += schedule if by_limits else draw.choice((("scheduler=cosine",), ("scheduler=constant",)))
    if draw.random() < 0.2 and not by_limits:
        words += ["trainer.max_epochs=-1", f"trainer.max_steps={epochs * steps - draw.randrange(steps)}"]
    else:
        words.append(f"trainer.max_epochs={epochs}")
    words += ["trainer=ddp"] if ranks == 2 else []
    words += draw.choice(_LOGGERS)
    words += _of_a_gan(draw) if "dcgan" in model[0] else _of_a_classifier(draw, "mlp" in model[0])
    if by_limits and "callbacks=[default,momentum_schedule]" in words:
        words = [word.replace(",momentum_schedule", "") for word in words if "callbacks.momentum_schedule" not in word]
    return Story(number, tuple(words), ranks, epochs, steps, events)


def _sizes(steps: int, draw: random.Random) -> dict[str, int]:
    return {
        "limit_train_batches": steps,
        "limit_val_batches": draw.choice((1, 3)),
        "limit_test_batches": draw.choice((1, 2)),
    }


def _of_a_gan(draw: random.Random) -> list[str]:
    return [
        f"norm={draw.choice(('sync', 'batch', 'cross_iteration'))}",
        *draw.choice(((), ("~callbacks.sample_grids",))),
    ]


def _of_a_classifier(draw: random.Random, every_norm: bool) -> list[str]:
    norm = draw.choice(_NORMS if every_norm else _NORMS[:6])
    words = [f"norm={norm}", *(["norm.groups=2"] if norm == "group" else [])]
    words.append(f"optimizer={draw.choice(('sgd', 'adam', 'adamw'))}")
    callbacks, extra = draw.choice(_CALLBACKS), draw.choice(_EXTRAS)
    if "early_stopping" in " ".join(extra) and "default" not in callbacks[0]:
        extra = ()
    if "recalibrate_norm" in callbacks[0] or "swa" in callbacks[0] or "ema" in callbacks[0]:
        words = [word for word in words if word != "norm=decorrelated"]  # which can't be recalibrated
    words += [*callbacks, *extra, *draw.choice(_SPEEDS)]
    # Statistics of each rank's own differ between ranks, and the check says so.
    return words if norm in _EQUAL_ON_RANKS else [word for word in words if "check_ranks" not in word]


def _common(ranks: int, workers: bool) -> list[str]:
    without = (*(() if ranks > 1 else _ON_RANKS), *(() if workers else ("kill a worker",)))
    return [kind for kind in KINDS if kind not in without]


def _events(kinds: tuple[str, ...], draw: random.Random) -> tuple[Event, ...]:
    """Events in the order of their moments; what ends the comparison or the run comes last."""
    kinds = tuple(sorted(kinds, key=lambda kind: kind == "again"))
    places = sorted(draw.random() for _ in kinds)
    moments: list[Moment] = draw.choices(("progress", "seconds", "saving"), (6, 1, 2), k=len(kinds))
    return tuple(
        Event(kind, "progress" if kind == "kill a worker" else moment, at, draw.random() < 0.15)
        for kind, moment, at in zip(kinds, moments, places, strict=True)
    )

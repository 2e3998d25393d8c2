"""Warnings from a layer's measurements, each with an identifier and a page in docs/warnings."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from syncbn.policy.report import NormRow, NormWarning


class Facts(NamedTuple):
    """A layer's row and other facts that the warnings depend on."""

    row: NormRow
    synchronized: bool
    momentum: float | None
    steps: int | None
    in_training_mode_at_evaluation: bool
    redundant_bias: str | None


def diagnose(facts: Facts) -> Iterator[NormWarning]:
    """Diagnose one layer."""
    for identifier, check in CHECKS.items():
        if (message := check(facts)) is not None:
            yield NormWarning(identifier, facts.row.layer, message)


def _stale_statistics(facts: Facts) -> str | None:
    row = facts.row
    if row.mean_distance is None or row.std_ratio is None or (row.mean_distance <= 0.5 and row.std_ratio <= 1.5):
        return None
    return (
        f"running statistics are {row.mean_distance:.2g} standard deviations and a factor of {row.std_ratio:.2g} from "
        "those of the batches; use syncbn.recalibrate"
    )


def _train_eval_gap(facts: Facts) -> str | None:
    if facts.row.gap is None or facts.row.gap <= 0.75:
        return None
    return (
        f"its output differs by {facts.row.gap:.2g} of γ between training and evaluation; use syncbn.recalibrate, and "
        "larger or synchronized batches"
    )


def _few_samples(facts: Facts) -> str | None:
    samples = facts.row.samples
    if samples is None or samples >= 16:
        return None
    where = "on all ranks together" if facts.synchronized else "on a rank"
    other = "" if facts.synchronized else "norm 'sync' on several ranks, "
    return f"batches have {samples} values of a channel {where}; use {other}'cross_iteration' or 'group'"


def _dead_channels(facts: Facts) -> str | None:
    if facts.row.dead <= 0.05 * facts.row.channels:
        return None
    return (
        f"{facts.row.dead} of {facts.row.channels} channels are constant or have γ near 0; use a smaller learning "
        "rate, or less weight decay on γ"
    )


def _exploding_channels(facts: Facts) -> str | None:
    if facts.row.exploding == 0:
        return None
    return (
        f"{facts.row.exploding} of {facts.row.channels} channels aren't finite or have a variance that is negative or "
        "above 1e6; look for a learning rate that is too large, and at the data"
    )


def _rank_divergence(facts: Facts) -> str | None:
    difference = facts.row.rank_difference
    if difference is None or difference <= 1e-3:
        return None
    return (
        f"the ranks' running means are up to {difference:.2g} standard deviations apart, and a checkpoint has those of "
        'rank 0; use syncbn.convert(model, "sync"), or syncbn.recalibrate before saving'
    )


def _slow_momentum(facts: Facts) -> str | None:
    if facts.momentum is None or facts.steps is None or (left := (1 - facts.momentum) ** facts.steps) <= 0.05:
        return None
    return (
        f"after {facts.steps} steps with momentum {facts.momentum:g}, {100 * left:.0f} % of the running statistics are "
        "still their initial values; use a larger momentum, or None, or syncbn.recalibrate"
    )


def _bias_before_norm(facts: Facts) -> str | None:
    if facts.redundant_bias is None:
        return None
    return f"the bias of {facts.redundant_bias} before it is subtracted again with the mean; build it with bias=False"


def _training_mode(facts: Facts) -> str | None:
    if not facts.in_training_mode_at_evaluation:
        return None
    return "it is in training mode while the model evaluates, and its statistics move; call model.eval()"


def _domain_drift(facts: Facts) -> str | None:
    if facts.row.drift is None or facts.row.drift <= 0.5:
        return None
    return f"the batches are {facts.row.drift:.2g} standard deviations from the reference; use syncbn.adapt"


CHECKS: dict[str, Callable[[Facts], str | None]] = {
    "stale-statistics": _stale_statistics,
    "train-eval-gap": _train_eval_gap,
    "few-samples": _few_samples,
    "dead-channels": _dead_channels,
    "exploding-channels": _exploding_channels,
    "rank-divergence": _rank_divergence,
    "slow-momentum": _slow_momentum,
    "bias-before-norm": _bias_before_norm,
    "training-mode": _training_mode,
    "domain-drift": _domain_drift,
}

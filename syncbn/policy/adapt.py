"""Adaptation of a trained network to another domain, without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from syncbn.norm.core.exchange import communicating_group
from syncbn.norm.core.options import suggest
from syncbn.norm.surgery.forward import Forward
from syncbn.norm.surgery.given import check_given
from syncbn.norm.surgery.select import Globs
from syncbn.policy.batch_statistics import BatchStatistics as _BatchStatistics  # noqa: F401  # in pickles of 0.1
from syncbn.policy.batch_statistics import batch_statistics_of, use_batch_statistics
from syncbn.policy.batches import device_of, in_step, single_samples_skipped
from syncbn.policy.recalibrate import recalibrate
from syncbn.policy.tent import Tent

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def adapt(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    *,
    method: Literal["adabn", "batch", "tent"] = "adabn",
    max_batches: int | None = None,
    forward: Forward | None = None,
    process_group: ProcessGroup | None = None,
    include: Globs = None,
    exclude: Globs = None,
    **options: Any,
) -> nn.Module:
    """Adapt the batch normalization layers of `model` to unlabeled data of another domain, in place.

    - "adabn": the running statistics become those of `batches`, by `recalibrate`. Evaluation is as usual.
    - "batch": from now on the layers normalize by the current batch, also in evaluation. No `batches` are needed.
    - "tent": as "batch", and `Tent` trains γ and β once over `batches` to minimize the predictions' entropy.

    After "batch" and "tent" running statistics are kept but not used; `use_running_statistics` reactivates them.
    Synchronized layers use the batches of all ranks, so all ranks must evaluate together.

    Args:
        model: any model with batch normalization layers of torch or of this package; for "tent" one that returns
            logits (N, classes, *).
        batches: inputs (N, ...), tuples (inputs, ...), or dicts of the model's keyword arguments; the same number of
            them on every rank. One of a single sample, where a layer can take no statistics of it, is skipped with a
            warning.
        method: one of the above.
        max_batches: use the first ones only. All when None.
        forward: how to call the model, `forward(model, batch)`; the batch is on the model's device.
        process_group: the ranks that adapt together; the default group when None.
        include: globs of module names. All when None.
        exclude: globs of module names that aren't adapted.
        options: options of "tent": `lr` and `steps`.

    Returns:
        `model`.

    Raises:
        ValueError: an unknown method or option; no batches, or another number of them on another rank; no layer to
            adapt; for "batch" and "tent", a layer that doesn't normalize by its batch alone (batch renormalization,
            cross-iteration and ghost batch norm and their kin); for "tent", a batch whose entropy or gradient isn't
            finite. γ, β and statistics are then as before the call.
        TypeError: a batch that the model can't be called with, without `forward`.

    Source:
        Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016,
        https://arxiv.org/abs/1603.04779 ("adabn"); Nado et al., Evaluating Prediction-Time Batch Normalization, 2020,
        https://arxiv.org/abs/2006.10963 ("batch"); Wang et al., Tent, ICLR 2021, https://arxiv.org/abs/2006.10726.
    """
    check_given(locals())
    if method not in ("adabn", "batch", "tent"):
        raise ValueError(f"unknown method {method!r}; {suggest(str(method), ('adabn', 'batch', 'tent'))}")
    allowed = ("lr", "steps") if method == "tent" else ()
    for option in options:
        if option not in allowed:
            raise ValueError(f"method {method!r} has no option {option!r}; {suggest(option, allowed)}")
    if batches is None and method != "batch":
        raise ValueError(f"method {method!r} needs batches of the new domain")
    if method == "batch":
        return use_batch_statistics(model, include=include, exclude=exclude)
    assert batches is not None
    if method == "adabn":
        return recalibrate(
            model,
            batches,
            max_batches=max_batches,
            forward=forward,
            process_group=process_group,
            include=include,
            exclude=exclude,
        )
    adapted = [layer for layer in model.modules() if batch_statistics_of(layer) is not None]
    tent = Tent(model, forward=forward, process_group=process_group, include=include, exclude=exclude, **options)
    group = communicating_group(process_group)
    try:
        for batch in in_step(batches, max_batches, device_of(model), group, forward):
            with single_samples_skipped(batch):
                tent(batch)
    except BaseException:
        tent.reset()
        for layer in tent.layers:
            if layer not in adapted and (hook := batch_statistics_of(layer)) is not None:
                hook.remove()
        raise
    return model

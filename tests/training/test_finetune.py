"""Fine-tuning policies on short real fits: only the right parameters and statistics change."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

import syncbn
from syncbn.training import FreezeNorm, GradualUnfreezing, RecalibrateNorm, TrainOnly
from tests.ranks import Ranks
from tests.training import fits

State = dict[str, Tensor]


class Diary(L.Callback):
    """Records the network's state at the start, after each epoch, and in each validation; and the optimizer's."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.states, self.validated = [fits.state(pl_module.net)], []
        self.loaders: list[Any] = []
        names = {id(parameter): name for name, parameter in pl_module.net.named_parameters()}
        (optimizer,) = trainer.optimizers
        self.optimized = {names[id(p)] for group in optimizer.param_groups for p in group["params"]}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.states.append(fits.state(pl_module.net))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated.append(fits.state(pl_module.net))
        self.loaders.append(copy.copy(trainer.train_dataloader))


def fit(*callbacks: L.Callback, epochs: int = 1, **options: Any) -> tuple[Any, Diary]:
    with fits.launched():
        module, diary = fits.task(), Diary()
        run = fits.trainer(max_epochs=epochs, callbacks=[*callbacks, diary], **options)
        run.fit(module, fits.digits(train=64, test=40, batch_size=16))
        return module, diary


def moved(before: State, after: State) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def of_norms(state: State, *kinds: str) -> set[str]:
    norms = {name.rpartition(".")[0] for name in state if name.endswith("running_mean")}
    return {name for name in state if name.rpartition(".")[0] in norms and name.endswith(kinds)}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("affine", [False, True])
def test_frozen_norms_stay_bit_for_bit(affine: bool) -> None:
    module, diary = fit(FreezeNorm(affine=affine), epochs=2)
    start, end = diary.states[0], diary.states[-1]
    frozen = of_norms(start, *STATISTICS, *(("weight", "bias") if affine else ()))
    assert moved(start, end) == set(start) - frozen
    assert diary.optimized == {name for name, _ in module.net.named_parameters()} - frozen
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_some_norms_alone() -> None:
    _, diary = fit(FreezeNorm(include=["net.layer1.*"]))
    still = set(diary.states[0]) - moved(diary.states[0], diary.states[-1])
    assert still == {name for name in of_norms(diary.states[0], *STATISTICS) if name.startswith("layer1")}


def test_a_frozen_buffer_that_somebody_moves_is_found() -> None:
    class Meddler(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
            pl_module.net.bn1.running_var[0] += 1e-6

    with pytest.raises(RuntimeError, match=r"changed during the fit: net\.bn1\.running_var$"):
        fit(FreezeNorm(), Meddler())


def test_norms_only() -> None:
    module, diary = fit(TrainOnly(norms=True))
    expected = of_norms(diary.states[0], "weight", "bias", *STATISTICS)
    assert moved(diary.states[0], diary.states[-1]) == expected
    assert diary.optimized == of_norms(diary.states[0], "weight", "bias")
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_classifier_only() -> None:
    _, diary = fit(TrainOnly(["net.fc.*"]), FreezeNorm())
    assert moved(diary.states[0], diary.states[-1]) == diary.optimized == {"fc.weight", "fc.bias"}


def test_gradual_unfreezing_takes_a_stage_more_each_time_and_stills_the_statistics() -> None:
    stages = GradualUnfreezing(["net.fc.*", "net.layer4.*"], every_n_epochs=1, frozen_stats_epochs=1)
    _, diary = fit(stages, epochs=4)
    parameters = diary.optimized
    statistics = of_norms(diary.states[0], *STATISTICS)
    moves = [moved(a, b) for a, b in zip(diary.states, diary.states[1:], strict=False)]
    fc = {"fc.weight", "fc.bias"}
    layer4 = {name for name in parameters if name.startswith("layer4")}
    assert [move & parameters for move in moves] == [fc, fc | layer4, parameters, parameters]
    assert [move & statistics for move in moves] == [statistics, statistics, statistics, set()]


def test_recalibration_is_what_validation_sees_and_training_does_not_notice() -> None:
    module, diary = fit(RecalibrateNorm(max_batches=3), epochs=2)
    _, plain = fit(epochs=2)
    parameters = {name for name, _ in module.net.named_parameters()}
    assert not moved(diary.states[-1], plain.states[-1]) & parameters
    assert moved(diary.states[-1], plain.states[-1]) == of_norms(diary.states[0], *STATISTICS)
    state, loader = diary.validated[-1], diary.loaders[-1]
    assert loader.state_dict() == {"delivered": 4}  # recalibration took none of the trainer's
    net = fits.task().net
    net.load_state_dict(state)
    syncbn.recalibrate(net, loader, max_batches=3)
    torch.testing.assert_close(fits.state(net), state, rtol=1e-5, atol=1e-6)


def test_recalibration_every_n_epochs_and_in_the_last_and_without_validation() -> None:
    module, diary = fit(RecalibrateNorm(every_n_epochs=2, max_batches=1), epochs=3)
    assert [int(state["bn1.num_batches_tracked"]) for state in diary.validated] == [4, 1, 1]
    module, _ = fit(RecalibrateNorm(max_batches=2), limit_val_batches=0)
    assert int(module.net.bn1.num_batches_tracked) == 2


@fits.averaging
def test_an_average_of_weights_gets_statistics_of_its_own() -> None:
    class Weights(L.Callback):
        """Computes the exponential average of the weights after each step, by the formula."""

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: object) -> None:
            now = {name: p.detach().clone() for name, p in pl_module.net.named_parameters()}
            if trainer.global_step == 1:
                self.average = now
            else:
                self.average = {name: 0.8 * value + 0.2 * now[name] for name, value in self.average.items()}

    weights = Weights()
    module, diary = fit(
        L.callbacks.EMAWeightAveraging(decay=0.8, use_buffers=False), RecalibrateNorm(max_batches=4), weights
    )
    got = {name: p.detach() for name, p in module.net.named_parameters()}
    torch.testing.assert_close(got, weights.average, rtol=1e-5, atol=1e-6)
    before = fits.state(module.net)
    syncbn.recalibrate(module.net, diary.loaders[-1], max_batches=4)
    torch.testing.assert_close(fits.state(module.net), before, rtol=1e-5, atol=1e-6)


def fit_on_ranks(batch_size: int) -> State:
    with fits.launched(), warnings.catch_warnings():
        module = fits.task().double()
        callbacks = [FreezeNorm(affine=True, include=["net.layer1.*"]), RecalibrateNorm(max_batches=3)]
        run = fits.trainer(max_epochs=1, precision="64-true", callbacks=callbacks)
        run.fit(module, fits.digits(train=73, test=40, batch_size=batch_size))
        return fits.state(module.net)


@pytest.mark.distributed
def test_two_ranks_with_unequal_batches_fine_tune_as_one_process_does(ranks: Callable[[int], Ranks]) -> None:
    single = fit_on_ranks(32)
    for rank in ranks(2).run(fit_on_ranks, 16):
        torch.testing.assert_close(rank, single, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: RecalibrateNorm(0), ValueError, "every_n_epochs must be at least 1, got 0"),
        (lambda: RecalibrateNorm(max_batches=0), ValueError, "max_batches must be at least 1, got 0"),
        (lambda: TrainOnly(), ValueError, "nothing would be trained"),
        (lambda: GradualUnfreezing([]), ValueError, "stages must name at least one"),
        (lambda: GradualUnfreezing(["a"], 0), ValueError, "every_n_epochs must be at least 1"),
        (lambda: GradualUnfreezing(["a"], 1, -1), ValueError, "frozen_stats_epochs must be at least 0"),
        (lambda: fit(GradualUnfreezing(["net.head.*"])), MisconfigurationException, "no parameter is named 'net.head"),
        (lambda: fit(TrainOnly(["net.head.*"])), MisconfigurationException, "no parameter is named 'net.head"),
        (lambda: fit(FreezeNorm(include=["layer1.*"])), MisconfigurationException, "no normalization layer is named"),
        (
            lambda: fit(GradualUnfreezing(["net.fc.*"], frozen_stats_epochs=1), epochs=-1, max_steps=1),
            MisconfigurationException,
            "give the trainer max_epochs",
        ),
    ],
)
def test_a_mistake_says_what_is_allowed(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()

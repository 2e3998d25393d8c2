"""Adversarial training: against a loop by hand, over ranks, and the test metrics of generated images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from syncbn.models.resnet import resnet18
from syncbn.training import GANTask, SampleGrids
from syncbn.training.callbacks.sample_grids import grid
from syncbn.training.tasks.gan_quality import GANQuality
from tests.ranks import Ranks
from tests.training import fits, gans

Pool = Callable[[int], Ranks]


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for key in a:
        if a[key].is_floating_point():  # an average of counters is rounded
            torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


class Recording(GANTask):
    """Records its training data."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.seen: list[tuple[Tensor, int]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.seen.append((batch[0].double(), self.trainer.fit_loop.total_batch_idx))
        super().training_step(batch, batch_idx)


def test_training_is_the_papers_loop() -> None:
    task = Recording(gans.net(), gans.ADAM)
    with fits.launched():
        run = fits.trainer(max_epochs=2, precision="64-true")
        run.fit(task, fits.digits(48, batch_size=16))

    noise = [tuple(task.noise(len(images), step, purpose) for purpose in (0, 1)) for images, step in task.seen]
    expected = gans.plain_steps([images for images, _ in task.seen], noise)

    assert len(noise) == 6
    assert not any(torch.equal(a, b) for a, b in noise)
    assert_close(fits.state(task.net), fits.state(expected), tolerance=1e-8)


@pytest.mark.distributed
@pytest.mark.parametrize(
    "options",
    [{}, {"joint_batches": True}, {"loss": "wgan_gp", "discriminator_steps": 2}],
    ids=["bce", "joint", "wgan_gp"],
)
def test_two_ranks_are_one_process(ranks: Pool, options: dict[str, object]) -> None:
    """Each network is unused in the other's backward pass; two forward passes before one; second derivatives."""
    single = gans.fit(gans.InRankOrder, 32, 96, **options)

    both = ranks(2).run(partial(gans.fit, **options), GANTask, 16, 96)

    for rank in both:
        assert_close(rank["net"], single["net"], tolerance=1e-7)
        assert rank["losses"] == pytest.approx(single["losses"], rel=1e-5, abs=1e-6)


def test_a_joint_batch_is_normalized_as_one() -> None:
    task = GANTask(gans.net("batch"), gans.ADAM, joint_batches=True)
    images, fakes = torch.rand(5, 1, 8, 8), -torch.rand(5, 1, 8, 8)
    logits = task.net.discriminator(torch.cat([images, fakes]))
    expected = F.binary_cross_entropy_with_logits(logits, torch.tensor([1.0] * 5 + [0.0] * 5), reduction="none")
    losses = task._discriminator_losses(images, fakes, step=0)
    torch.testing.assert_close(losses, expected[:5] + expected[5:])
    apart = GANTask(gans.net("batch"), gans.ADAM)._discriminator_losses(images, fakes, step=0)
    assert (apart - losses).abs().max() > 1e-3


def test_the_penalty_of_a_linear_discriminator_is_known() -> None:
    task = GANTask(gans.net("none"), gans.ADAM, loss="wgan_gp", penalty_weight=3.0)
    task.trainer = SimpleNamespace(global_rank=0, world_size=1)
    task.net.discriminator = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    weight = task.net.discriminator[1].weight
    images, fakes = torch.randn(5, 1, 8, 8), torch.randn(5, 1, 8, 8)

    losses = task._discriminator_losses(images, fakes, step=0)
    (grad,) = torch.autograd.grad(losses.mean(), weight)

    size = weight.detach().norm()
    critic = (fakes - images).flatten(1) @ weight.detach()[0]
    torch.testing.assert_close(losses.detach(), critic + 3 * (size - 1) ** 2)
    expected = (fakes - images).flatten(1).mean(0) + 3 * 2 * (size - 1) * weight.detach()[0] / size
    torch.testing.assert_close(grad[0], expected)


@pytest.fixture(scope="module")
def quality() -> GANQuality:
    data = fits.digits(batch_size=16)
    before = torch.get_rng_state()
    judged = GANQuality(data, epochs=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert data.batch_size == 16
    return judged


def reset(quality: GANQuality) -> GANQuality:
    for metric in (quality.frechet, quality.kernel, quality.right, quality.classes, quality.confidences):
        metric.reset()
    return quality


def test_distances_and_shares_are_those_of_the_features(quality: GANQuality) -> None:
    data = fits.digits()
    images, labels = data.images[data.test_indices], data.labels[data.test_indices]
    generator = torch.Generator().manual_seed(0)
    made = (images + 0.5 * torch.randn(images.shape, generator=generator))[:200]
    reset(quality).add_real(images[:150], labels[:150])
    quality.add_real(images[150:], labels[150:])
    quality.add_generated(made)
    found = {name: float(value) for name, value in quality.compute().items()}

    with torch.no_grad():
        real, fake = (quality.features(x).double().numpy() for x in (images, made))
        logits = quality.features.classifier(made).double()
        right = (quality.features.classifier(images).argmax(1) == labels).double().mean().item()
    roots = []
    for features in (real, fake):
        values, vectors = np.linalg.eigh(np.cov(features, rowvar=False))
        roots.append(vectors * np.sqrt(values.clip(0)) @ vectors.T)
    overlap = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()  # the trace of (C₁C₂)^½
    frechet = ((real.mean(0) - fake.mean(0)) ** 2).sum() + sum((root**2).sum() for root in roots) - 2 * overlap
    assert found["frechet"] == pytest.approx(frechet, rel=1e-2)
    assert found["confident"] == pytest.approx(float((logits.softmax(1).amax(1) >= 0.9).double().mean()))
    shares = np.bincount(logits.argmax(1), minlength=10) / 200
    assert found["rarest_class"] == pytest.approx(shares.min())
    assert found["classifier_acc"] == pytest.approx(right)
    assert right > 0.9


def test_a_collapsed_generator_is_seen(quality: GANQuality) -> None:
    data = fits.digits()
    images, labels = data.images, data.labels

    def of(made: Tensor) -> dict[str, float]:
        reset(quality).add_real(images[:800], labels[:800])
        quality.add_generated(made)
        return {name: float(value) for name, value in quality.compute().items()}

    good, collapsed = of(images[800:1600]), of(images[labels == 3])
    assert collapsed["rarest_class"] == 0 < 0.05 < good["rarest_class"]
    assert collapsed["frechet"] > 20 * good["frechet"]
    assert collapsed["kernel"] > 20 * abs(good["kernel"])


@pytest.mark.distributed
def test_the_test_of_two_ranks_is_that_of_one(ranks: Pool) -> None:
    single = gans.evaluate(101)
    first, second = ranks(2).run(gans.evaluate, 101)
    assert first == second
    assert first["test/classifier_acc"] == pytest.approx(single["test/classifier_acc"])
    for name in ("test/frechet", "test/confident", "test/rarest_class", "test/kernel"):
        assert np.isfinite(first[name])


def test_a_grid_shows_each_image_in_its_place() -> None:
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 8, 8)
    picture = grid(images, columns=3)
    assert picture.shape == (2 * 34, 3 * 34, 3)
    assert picture[17::34, 17::34, 0].flatten().tolist() == [0, 51, 102, 153, 204, 255]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
def test_samples_are_saved_over_time_and_sent_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="tests", save_dir=tmp_path, offline=True)
    task = GANTask(gans.net(), gans.ADAM)
    with fits.launched():
        callback = SampleGrids(every_n_epochs=2, rows=3, folder=tmp_path)
        run = fits.trainer(max_epochs=4, logger=logger, callbacks=[callback])
        run.fit(task, fits.digits(64, batch_size=32))
    logger.experiment.finish()

    pictures = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*.png"))
    assert pictures == ["plots/samples.png", "samples/epoch_0002.png", "samples/epoch_0004.png"]
    early, late, last = (matplotlib.image.imread(tmp_path / name) for name in (pictures[1], pictures[2], pictures[0]))
    assert early.shape == (3 * 34, 3 * 34, 4)
    assert not np.array_equal(early, late)  # the noise stays, the generator moves
    np.testing.assert_array_equal(late, last)
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/samples*.png"))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "unknown loss 'hinge'; allowed: 'bce', 'wgan_gp'"),
        ({"penalty_weight": -1.0}, "penalty_weight must be at least 0, got -1.0"),
        ({"discriminator_steps": 0}, "discriminator_steps must be at least 1, got 0"),
        ({"joint_batches": True, "loss": "wgan_gp"}, "joint_batches=True goes with loss='bce' alone"),
        ({"quality_samples": 0}, "quality_samples must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_says_what_is_allowed(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GANTask(gans.net(), gans.ADAM, **options)
    with pytest.raises(ValueError, match="rows must be at least 1, got 0"):
        SampleGrids(rows=0)


def test_another_network_is_refused() -> None:
    with pytest.raises(TypeError, match="GANTask trains a DCGAN"):
        GANTask(resnet18(width=4), gans.ADAM)

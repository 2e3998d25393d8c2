"""Grids of generated images from fixed noise, over the epochs."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from syncbn.norm.core.arguments import check_arguments
from syncbn.training.callbacks.checks_folder import make_folder
from syncbn.training.callbacks.sample_grids_options import SampleGridsOptions as Options

MIN_SIDE = 32  # smallest side of an image in a grid, in pixels


class SampleGrids(L.Callback):
    """Saves, every n epochs and at the end, a grid of images that the module generates from fixed noise.

    It writes `samples/epoch_0005.png` and so on to the run folder, the last also as `plots/samples.png`, and logs
    `samples` to W&B if the trainer does. The module's `forward` must map noise (N, module.net.latent_size) to images
    (N, C, H, W) in [-1, 1], as in `GANTask`; it runs in eval mode, only on rank 0. Needs matplotlib
    (`pip install syncbn[train]`).

    Args:
        every_n_epochs: epochs between two grids.
        rows: number of rows and columns.
        folder: run folder; the trainer's `default_root_dir` when None.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(
        self,
        every_n_epochs: int = Options.every_n_epochs,
        rows: int = Options.rows,
        folder: str | Path | None = Options.folder,
    ) -> None:
        check_arguments(Options, locals())
        self.every_n_epochs = every_n_epochs
        self.rows = rows
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the folder."""
        make_folder(trainer, self.folder)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save a grid every n-th epoch."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs == 0:
            self._save(trainer, pl_module, f"samples/epoch_{epoch:04}.png")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save the last grid among the plots."""
        self._save(trainer, pl_module, "plots/samples.png")

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        if not trainer.is_global_zero:
            return
        import matplotlib.image

        path = Path(self.folder or trainer.default_root_dir) / name
        path.parent.mkdir(exist_ok=True)
        matplotlib.image.imsave(path, samples(pl_module, self.rows).numpy())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("samples", [str(path)])


def samples(module: L.LightningModule, rows: int) -> Tensor:
    """Generate a `grid` of rows² images with `module` in eval mode, always from the same noise."""
    net: Any = module.net
    noise = torch.randn(rows**2, net.latent_size, generator=torch.Generator().manual_seed(0))
    was_training = module.training
    module.eval()
    with torch.no_grad():
        images = module(noise.to(next(net.parameters()))).float().cpu()
    module.train(was_training)
    return grid(images, rows)


def grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images (N, C, H, W) in [-1, 1], C of 1 or 3, as (H', W', 3) uint8, each enlarged to 32 pixels.

    N must be a multiple of `columns`; images are in row-major order.
    """
    factor = max(1, -(-MIN_SIDE // max(images.shape[2:])))
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
    pixels = pixels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    pixels = torch.nn.functional.pad(pixels, (1, 1, 1, 1))
    rows, (channels, height, width) = len(pixels) // columns, pixels.shape[1:]
    tiled = pixels.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    return tiled.reshape(rows * height, columns * width, channels)

"""The data: any `LightningDataModule` will do. Its loaders are shared among the ranks."""

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

SIZE = 16


class Shapes(L.LightningDataModule):
    """Squares, crosses and rings at random places, in noise: nothing to download.

    Args:
        batch_size: samples of each rank in a training step.
        num_train: training images; there are 200 more for validation, and 200 for the test.
        num_workers: processes of each loader.
        seed: of the training images.
    """

    num_classes = 3
    in_channels = 1
    image_size = (SIZE, SIZE)
    class_names = ("square", "cross", "ring")

    def __init__(self, batch_size: int = 32, num_train: int = 600, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_train = num_train
        self.num_workers = num_workers
        self.seed = seed

    def setup(self, stage: str) -> None:
        self.train = TensorDataset(*draw(self.num_train, seed=self.seed))
        self.val = TensorDataset(*draw(200, seed=1_000_001))
        self.test = TensorDataset(*draw(200, seed=1_000_002))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 100, num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 100, num_workers=self.num_workers)


def draw(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, SIZE, SIZE) and their classes (count): a function of its arguments alone."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=random)
    centres = torch.randint(5, SIZE - 5, (count, 2), generator=random)
    places = torch.stack(torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"))
    y, x = (places[:, None] - centres.T[:, :, None, None]).abs()  # distances from the centre, (count, SIZE, SIZE)
    largest, smallest = torch.maximum(y, x), torch.minimum(y, x)
    shapes = torch.stack([largest <= 2, (largest <= 4) & (smallest <= 0), (largest <= 3) & (largest >= 3)])
    images = shapes[labels, torch.arange(count)].float()
    return (images + 0.3 * torch.randn(images.shape, generator=random))[:, None], labels

"""Networks, data and tasks of somebody's own: what a project may hold. It knows nothing of this package."""

import functools
import os
import signal
from collections import namedtuple
from collections.abc import Iterator
from typing import Any, ClassVar

import lightning.pytorch as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

CLASSES, CHANNELS, SIZE = 3, 2, 6


class Net(nn.Module):
    """A convolution, two batch norms and a classifier."""

    def __init__(self, num_classes: int = CLASSES, in_channels: int = CHANNELS, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)
        self.head = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Asks(Net):
    """Asks for all sizes, and for nothing by default."""

    def __init__(self, *, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__(num_classes, in_channels)
        self.image_size = image_size


class OwnMeaning(Net):
    """Has arguments by the names of ours with another meaning."""

    def __init__(self, norm: str = "batch", weights: str | None = "some", pretrained: bool = True) -> None:
        super().__init__()
        self.said = (norm, weights, pretrained)


class TakesNorm(nn.Module):
    """Makes its norms itself."""

    def __init__(self, norm: Any, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), norm(4), nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ChoosesByName(Net):
    """Has its own word for each norm, and images of one size."""

    def __init__(self, num_classes: int = CLASSES, norm: str = "batch", image_size: int = SIZE) -> None:
        super().__init__(num_classes)
        self.said = norm, image_size // 2
        if norm != "batch":
            self.norm = nn.Identity()


class NoNorm(nn.Module):
    """Has no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(CHANNELS * SIZE * SIZE, 5), nn.LayerNorm(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Lazy(nn.Module):
    """Finds out its sizes at the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Branches(Net):
    """Can't be traced by torch.fx: what it does depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() < 1e9 else x


class ReturnsDict(Net):
    """Returns no tensor."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class ReturnsMoreInTraining(Net):
    """Returns a second head's logits too, while it trains."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        return (logits, logits) if self.training else logits


class Fails(Net):
    """Has a fault of its own."""

    def __init__(self) -> None:
        super().__init__(width=len(3))  # type: ignore[arg-type]


class OwnForward(nn.BatchNorm2d):
    """A batch norm that converting would lose something of."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class WithOwnForward(Net):
    """Has such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = OwnForward(4)


def factory(*, weights: str | None = None, progress: bool = True, **kwargs: Any) -> Net:
    """As torchvision's: what it doesn't know it passes on."""
    return Net(**kwargs)


def create_model(name, pretrained=False, **kwargs):
    """As timm's, without annotations."""
    return {"net": Net}[name](**kwargs)


def by_place(num_classes: int, /, *sizes: int) -> nn.Module:
    """Can't be given its sizes by name."""
    return Net(num_classes)


narrow = functools.partial(Net, width=2)


def images(size: int = 24) -> tuple[Tensor, Tensor]:
    """Images that show their class, and the classes."""
    labels = torch.arange(size) % CLASSES
    noise = torch.randn(size, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return noise + labels[:, None, None, None], labels


class Data(L.LightningDataModule):
    """Says nothing of itself."""

    def __init__(self, batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.prepared = 0

    def prepare_data(self) -> None:
        self.prepared += 1

    def setup(self, stage: str) -> None:
        self.part: Dataset[Any] = TensorDataset(*images())

    def train_dataloader(self) -> Any:
        return DataLoader(self.part, self.hparams["batch_size"], shuffle=True, num_workers=self.hparams["num_workers"])

    def val_dataloader(self) -> Any:
        return DataLoader(self.part, 5)

    def test_dataloader(self) -> Any:
        return DataLoader(self.part, 5)


class ByAttribute(Data):
    num_classes = CLASSES
    in_channels = CHANNELS
    image_size = SIZE
    class_names = ("a", "b", "c")

    def setup(self, stage: str) -> None:
        raise AssertionError("nobody needs to look")


class ByProperty(Data):
    @property
    def num_classes(self) -> int:
        return CLASSES


class ByKeyword(Data):
    def setup(self, *, stage: str) -> None:  # type: ignore[override]
        super().setup(stage)


class NeedsSetupFirst(Data):
    @property
    def num_classes(self) -> int:
        return len(self.part.tensors[1].unique())


class ByHyperParameter(Data):
    def __init__(self, num_classes: int = CLASSES, batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()


class Named(TensorDataset):
    classes: ClassVar = ["ant", "bee", "cat"]


class ByDataset(Data):
    def setup(self, stage: str) -> None:
        self.part = Subset(Named(*images()), range(12))


class OfDicts(Data):
    def train_dataloader(self) -> Any:
        return DataLoader([{"image": x, "label": y} for x, y in zip(*images(), strict=True)], 4)


Pair = namedtuple("Pair", ["image", "label"])


class OfNamedTuples(Data):
    def train_dataloader(self) -> Any:
        return DataLoader([Pair(x, y) for x, y in zip(*images(), strict=True)], 4)


class OfThree(Data):
    def train_dataloader(self) -> Any:
        x, y = images()
        return DataLoader(TensorDataset(x, y, y), 4)


class OfFloats(Data):
    def train_dataloader(self) -> Any:
        x, y = images()
        return DataLoader(TensorDataset(x, y.float()), 4)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(*images(), strict=True)


class OfStream(Data):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), 4)


class OfWholeBatches(Data):
    def train_dataloader(self) -> Any:
        x, y = images()
        return DataLoader([(x[i : i + 4], y[i : i + 4]) for i in range(0, 24, 4)], batch_size=None)


class OfSeveral(Data):
    def train_dataloader(self) -> Any:
        return {"a": super().train_dataloader(), "b": super().train_dataloader()}


class Combined(Data):
    def train_dataloader(self) -> Any:
        return CombinedLoader([super().train_dataloader(), super().train_dataloader()], "max_size")


class Converted(Data):
    """Bytes that become numbers on the way to the device."""

    def setup(self, stage: str) -> None:
        x, y = images()
        self.part = TensorDataset((x * 20 + 100).byte(), y)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].float() / 255, batch[1]


class WithoutEvaluation(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(*images()), 4)


class OfInt32(Data):
    def train_dataloader(self) -> Any:
        x, y = images()
        return DataLoader(TensorDataset(x, y.int()), 4)


class OfIgnored(Data):
    def train_dataloader(self) -> Any:
        x, y = images()
        return DataLoader(TensorDataset(x, y.where(y > 0, -100)), 4)


class WithTwoValidations(Data):
    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), super().val_dataloader()]


class WithNoValidation(Data):
    def val_dataloader(self) -> Any:
        return []


class ByMethod(Data):
    def num_classes(self) -> int:
        return CLASSES


class ByArrays(Data):
    num_classes = np.int64(CLASSES)
    in_channels = torch.tensor(CHANNELS)
    image_size = np.array([SIZE, SIZE])
    class_names = np.array(["a", "b", "c"])


class Broken(Data):
    def setup(self, stage: str) -> None:
        raise FileNotFoundError("no such file: images.tar")


class FourClasses(Data):
    num_classes = 4


class Task(L.LightningModule):
    """Asks for what it needs by name, and keeps what it was given."""

    def __init__(self, model: nn.Module, optimizer: Any, scheduler: Any = None, class_names: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.backbone = model

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.backbone(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.backbone(batch[0]), batch[1]), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.backbone(batch[0])
        self.log("test_acc", (logits.argmax(1) == batch[1]).float().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams["optimizer"](self.parameters())
        if self.hparams["scheduler"] is None:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        return [optimizer], [{"scheduler": self.hparams["scheduler"](optimizer, total_steps=steps), "interval": "step"}]


class Whole(L.LightningModule):
    """Is the network as well, and asks for nothing."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(width=width)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Later(Whole):
    """Makes its layers when the trainer asks for them."""

    def __init__(self) -> None:
        L.LightningModule.__init__(self)
        self.net = None

    def configure_model(self) -> None:
        if self.net is None:
            self.net = Net()


class Uncalled(Whole):
    """Has no forward: its steps call its layers."""

    forward = L.LightningModule.forward

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean(), sync_dist=True)


class ByHand(Whole):
    """Two optimizers, batches that are dicts, and steps by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            loss = F.cross_entropy(self(batch["image"]), batch["label"])
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        self.log("loss/validation", F.cross_entropy(self(x), y), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.conv.parameters(), 0.01), torch.optim.SGD(self.net.head.parameters(), 0.02)


class OwnCallbacks(Task):
    """Brings its own checkpoints and early stopping."""

    def configure_callbacks(self) -> Any:
        return [
            L.callbacks.ModelCheckpoint(monitor="val_loss", filename="mine"),
            L.callbacks.EarlyStopping("val_loss", patience=1),
        ]


class ByNames(Whole):
    """Is the network as well, and chooses its parts by name."""

    def __init__(self, model: str = "net", optimizer: str = "adam", scheduler: bool = False) -> None:
        super().__init__()
        self.said = model, optimizer, scheduler


class Interrupted(Task):
    """Is asked to stop in the middle of its second epoch, the first time."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.current_epoch == 1 and batch_idx == 2 and not os.environ.get("GOES_ON"):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)

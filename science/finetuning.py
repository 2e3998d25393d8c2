"""Tables of docs/results/finetuning.md, on scikit-learn's digits: python -m science.finetuning <table>.

Tables: domains, recalibration, policies. Options: seeds=5.
"""

import copy
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

import syncbn
from syncbn.data import DigitsDataModule
from syncbn.models.resnet import resnet18
from syncbn.norm import norm_layer
from syncbn.run.screen import quiet
from syncbn.training import ClassificationTask, FreezeNorm, GradualUnfreezing, TrainOnly

DOMAINS = {
    "0.4·x + 0.5": {"contrast": 0.4, "brightness": 0.5},
    "blurred, 0.7 pixels": {"blur": 0.7},
    "noise, 0.5": {"noise": 0.5},
    "turned by 30°": {"rotation": 30.0},
    "inverted": {"inversion": 1.0},
}
LABELS = 100


class Net(nn.Module):
    """Three convolutions with batch normalization and a linear classifier; (N, 1, 8, 8) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = block(1, 16, 1)
        self.layer2 = block(16, 32, 2)
        self.layer3 = block(32, 48, 2)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3)))


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def train(
    net: nn.Module, data: DigitsDataModule, lr: float, callbacks: tuple[L.Callback, ...] = (), **limits: Any
) -> nn.Module:
    """Train by SGD with momentum at a constant learning rate."""
    task = ClassificationTask(net, partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=5e-4))
    trainer = L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
        **limits,
    )
    trainer.fit(task.train(), data)
    return net


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Tensor], data: DigitsDataModule) -> float:
    """Test accuracy in percent, in batches of 128."""
    right = [(predict(images).argmax(1) == labels).float() for images, labels in data.test_dataloader()]
    return 100 * float(torch.cat(right).mean())


def trained(seed: int) -> nn.Module:
    """Train a network on the plain digits for 15 epochs."""
    torch.manual_seed(seed)
    return train(Net(), DigitsDataModule(seed=seed, augment=False), lr=0.1, max_epochs=15).eval()


def domains(seed: int, names: Sequence[str] = tuple(DOMAINS)) -> dict[tuple[str, ...], float]:
    """Test accuracy on shifted domains, unadapted and adapted to unlabeled training images of the domain."""
    net = trained(seed)
    found: dict[tuple[str, ...], float] = {("as trained", "as it is"): accuracy(net, DigitsDataModule())}
    for name in names:
        data = DigitsDataModule(augment=False, batch_size=128, corruptions=DOMAINS[name])
        found[name, "as it is"] = accuracy(net, data)
        for method in ("adabn", "batch", "tent"):
            model = copy.deepcopy(net)
            options: dict[str, Any] = {"lr": 1e-3} if method == "tent" else {}
            syncbn.adapt(model, data.train_dataloader(), method=method, **options)
            found[name, method] = accuracy(model.eval(), data)
    return found


def recalibration(seed: int, counts: Sequence[int] = (20, 40, 80, 160, 320)) -> dict[tuple[str, ...], float]:
    """Test accuracy of a ResNet-18 early in training, with momentum 0.01, before and after recalibration."""
    found: dict[tuple[str, ...], float] = {}
    data = DigitsDataModule(seed=seed, augment=False)
    for steps in counts:
        torch.manual_seed(seed)
        norm = norm_layer("batch", momentum=0.01)
        net = resnet18(norm=norm, num_classes=10, in_channels=1, stem="cifar", width=8)
        train(net, data, lr=0.05, max_steps=steps, max_epochs=-1).eval()
        found[f"{steps}", "running averages"] = accuracy(net, data)
        found[f"{steps}", "recalibrated"] = accuracy(syncbn.recalibrate(net, data.train_dataloader()), data)
    return found


POLICIES: dict[str, Callable[[], tuple[L.Callback, ...]]] = {
    "nothing frozen": tuple,
    "frozen_stats": lambda: (FreezeNorm(),),
    "frozen_bn": lambda: (FreezeNorm(affine=True),),
    "bn_only": lambda: (TrainOnly(norms=True),),
    "backbone_frozen": lambda: (TrainOnly(["net.fc.*"]), FreezeNorm()),
    "gradual": lambda: (GradualUnfreezing(["net.fc.*", "net.layer3.*", "net.layer2.*"], 4, frozen_stats_epochs=5),),
}


def policies(seed: int) -> dict[tuple[str, ...], float]:
    """Test accuracy after fine-tuning on 100 labels of a domain, from old and from recalibrated statistics."""
    net = trained(seed)
    found: dict[tuple[str, ...], float] = {}
    for domain in ("0.4·x + 0.5", "turned by 30°"):
        data = DigitsDataModule(seed=seed, augment=False, batch_size=10, corruptions=DOMAINS[domain])
        data.train_indices = data.train_indices[
            torch.randperm(len(data.train_indices), generator=seeded(seed))[:LABELS]
        ]
        for recalibrated in (False, True):
            for policy, callbacks in POLICIES.items():
                torch.manual_seed(seed)
                model = copy.deepcopy(net)
                if recalibrated:
                    syncbn.recalibrate(model, data.train_dataloader())
                train(model, data, 0.01, callbacks(), max_epochs=20)
                start = "recalibrated first" if recalibrated else "as trained"
                found[f"{domain}, {start}", policy] = accuracy(model.eval(), data)
    return found


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(rows: list[dict[tuple[str, ...], float]]) -> str:
    """Format mean and standard deviation over seeds as Markdown."""
    names, columns = (list(dict.fromkeys(key[i] for key in rows[0])) for i in (0, 1))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = []
        for column in columns:
            values = [row[name, column] for row in rows if (name, column) in row]
            cells.append(f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}" if values else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    measures: dict[str, Callable[[int], dict[tuple[str, ...], float]]]
    measures = {"domains": domains, "recalibration": recalibration, "policies": policies}
    names = [argument for argument in sys.argv[1:] if argument in measures]
    seeds = int(next((a.removeprefix("seeds=") for a in sys.argv[1:] if a.startswith("seeds=")), "5"))
    if not names:
        raise SystemExit(__doc__)
    quiet()
    warnings.filterwarnings("ignore", message=".*logging interval")
    for name in names:
        print(table([measures[name](seed) for seed in range(seeds)]), flush=True)


if __name__ == "__main__":
    main()

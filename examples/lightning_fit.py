# lightning_fit.py; run it with: torchrun --nproc-per-node 2 lightning_fit.py
import lightning.pytorch as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import syncbn
from syncbn.training import NormStatisticsRecorder, SyncBatchNormPlugin, ddp


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        losses = cross_entropy(self.net(images), labels, reduction="none")
        return syncbn.mean_over_ranks(losses)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


data = TensorDataset(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))
trainer = L.Trainer(
    accelerator="cpu",
    devices=2,
    strategy=ddp(),
    plugins=[SyncBatchNormPlugin(momentum=0.05)],
    callbacks=[NormStatisticsRecorder(every_n_steps=1)],
    max_epochs=1,
)
trainer.fit(Classifier(), DataLoader(data, batch_size=16))

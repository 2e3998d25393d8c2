"""`pip install syncbn[lightning]` is enough for the plugin and the callbacks."""

import subprocess
import sys

WITHOUT_EXTRAS = """
import sys
import lightning.pytorch as L, torch  # it looks for optional packages by their metadata, which is there in this test
for name in ("hydra", "omegaconf", "wandb", "sklearn", "matplotlib", "tensorboard"):
    sys.modules[name] = None
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from syncbn.training import ClassificationTask, NormStatisticsRecorder, Plots, SyncBatchNormPlugin, WandbMedia

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    def training_step(self, batch, batch_idx):
        assert any(type(m).__name__ == "SyncBatchNorm" for m in self.modules()), self
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

trainer = L.Trainer(accelerator="cpu", devices=1, strategy="ddp", max_epochs=1, logger=False,
                    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                    plugins=[SyncBatchNormPlugin()])
data = DataLoader(TensorDataset(torch.randn(8, 3), torch.arange(8) % 2), batch_size=4)
module = Module()
trainer.fit(module, data)
assert type(module.net[1]) is nn.BatchNorm1d and module.net[1].num_batches_tracked == 2
print("trained")
"""


def test_the_lightning_extra_alone_is_enough() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("trained\n"), done.stderr

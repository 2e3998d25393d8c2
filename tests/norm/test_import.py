"""The core imports only torch."""

import subprocess
import sys

BLOCKED = (
    "lightning",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "wandb",
    "torchmetrics",
    "sklearn",
    "matplotlib",
    "rich",
)


def test_the_core_imports_without_the_trainer() -> None:
    script = f"""
import sys
for name in {BLOCKED!r}:
    sys.modules[name] = None  # an import of it raises
import torch, syncbn, syncbn.norm, syncbn.models.resnet
for name in syncbn.__all__:
    getattr(syncbn, name)
layer = syncbn.convert(torch.nn.BatchNorm1d(3), "sync")
layer(torch.randn(4, 3)).sum().backward()
if "torch._dynamo" in sys.modules:
    sys.exit("the compiler was imported, which takes as long as torch")
loaded = {{module.split(".")[0] for module in sys.modules if sys.modules[module] is not None}}
print(sorted(loaded & set({BLOCKED!r})))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"

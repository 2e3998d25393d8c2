# accelerate_loop.py; run it with: torchrun --nproc-per-node 2 accelerate_loop.py
"""Hugging Face accelerate: convert before `prepare`, which wraps the model."""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import syncbn
from syncbn.models.resnet import resnet18


def main():
    accelerator = Accelerator(
        cpu=True,  # leave it out on GPUs
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 3, 16, 16), torch.randint(10, (32,)))
    model = syncbn.convert(resnet18(num_classes=10, width=8, stem="cifar"), "sync")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, batch_size=4, shuffle=True))

    for images, labels in loader:
        losses = cross_entropy(model(images), labels, reduction="none")
        optimizer.zero_grad()
        accelerator.backward(syncbn.mean_over_ranks(losses))
        optimizer.step()

    network = accelerator.unwrap_model(model)
    accelerator.print(f"{accelerator.num_processes} processes, {network.bn1.num_batches_tracked} steps")
    accelerator.end_training()


if __name__ == "__main__":
    main()

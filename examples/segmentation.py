# segmentation.py; run it with: torchrun --nproc-per-node 2 segmentation.py
"""Segmentation with two images on each rank, where some pixels have no label."""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.models.fcn import FCN
from syncbn.models.resnet import resnet18

IGNORED = 255


def batch(generator):
    """Two images of a bright square on noise; the square's border has no label."""
    images, labels = 0.1 * torch.randn(2, 1, 32, 32, generator=generator), torch.zeros(2, 32, 32, dtype=torch.int64)
    for image, label in zip(images, labels, strict=True):
        x, y = torch.randint(2, 14, (2,), generator=generator).tolist()
        label[y - 2 : y + 18, x - 2 : x + 18] = IGNORED
        label[y : y + 16, x : x + 16] = 1
        image[:, y : y + 16, x : x + 16] += 1
    return images, labels


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    network = FCN(resnet18(norm="sync", in_channels=1, width=8, stem="cifar"), num_classes=2)
    model = DistributedDataParallel(network, forward_sync_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(20):
        images, labels = batch(generator)
        losses = cross_entropy(model(images), labels, ignore_index=IGNORED, reduction="none")
        loss = syncbn.mean_over_ranks(losses[labels != IGNORED])  # the ranks have different numbers of labels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    network.eval()
    images, labels = batch(generator)
    right = (network(images).argmax(1) == labels)[labels != IGNORED].float().mean()
    if dist.get_rank() == 0:
        print(f"right pixels: {100 * right:.1f} %")
    dist.barrier()
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

# detection.py; run it with: torchrun --nproc-per-node 2 detection.py
"""A detector with two images on each rank, whose targets are lists: images have different numbers of boxes, or none."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.models.resnet import resnet18

CELL = 8  # pixels that a place of the output stands for


class Detector(nn.Module):
    """An objectness and a box for each cell of 8x8 pixels."""

    def __init__(self):
        super().__init__()
        trunk = resnet18(width=8, stem="cifar")
        self.backbone = nn.Sequential(trunk.conv1, trunk.bn1, nn.ReLU(), trunk.layer1, trunk.layer2, trunk.layer3)
        self.down = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.head = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 5, 1))

    def forward(self, images):
        return self.head(self.down(self.backbone(images)))


def scene(generator):
    """An image with up to three bright squares, and their boxes: (n, 4), corners in pixels."""
    image, boxes = 0.1 * torch.randn(3, 32, 32, generator=generator), []
    for _ in range(int(torch.randint(0, 4, (), generator=generator))):
        x, y = torch.randint(0, 24, (2,), generator=generator).tolist()
        image[:, y : y + 8, x : x + 8] += 1
        boxes.append([x, y, x + 8, y + 8])
    return image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def losses_of(outputs, targets):
    """The loss of each image, so that the mean over ranks weighs images alike, however many boxes they have."""
    losses = []
    for output, boxes in zip(outputs, targets, strict=True):
        wanted, there = torch.zeros_like(output[1:]), torch.zeros_like(output[0])
        for box in boxes:
            column, row = ((box[:2] + box[2:]) / 2 // CELL).int().tolist()
            there[row, column], wanted[:, row, column] = 1, box / 32
        place = there.bool()
        loss = binary_cross_entropy_with_logits(output[0], there)
        losses.append(loss + smooth_l1_loss(output[1:, place], wanted[:, place], reduction="sum") / 4)
    return torch.stack(losses)


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = syncbn.convert(Detector(), "sync")  # two images have poor moments, those of all ranks better ones
    model = DistributedDataParallel(model, forward_sync_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for step in range(30):
        images, targets = zip(*(scene(generator) for _ in range(2)), strict=True)
        loss = syncbn.mean_over_ranks(losses_of(model(torch.stack(images)), targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 29 == 0 and dist.get_rank() == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    dist.barrier()
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

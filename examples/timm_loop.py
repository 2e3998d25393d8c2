# timm_loop.py; run it with: torchrun --nproc-per-node 2 timm_loop.py
"""timm's parts in a loop like its own: its model, optimizer, schedule and average of weights."""

import timm
import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch.nn.parallel import DistributedDataParallel

import syncbn


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    # Instead of timm's --sync-bn; its layers keep their activations (BatchNormAct2d).
    network = syncbn.convert(timm.create_model("test_efficientnet", num_classes=4), "sync")
    average = ModelEmaV3(network, decay=0.9)
    model = DistributedDataParallel(network, forward_sync_buffers=False)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-3, weight_decay=0.05)  # none on the norms' γ and β
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=2)
    mixup, loss_of = Mixup(mixup_alpha=0.2, num_classes=4), SoftTargetCrossEntropy()

    generator = torch.Generator().manual_seed(dist.get_rank())
    for epoch in range(epochs):
        for _ in range(3):
            images = torch.randn(4, 3, 32, 32, generator=generator)
            images, targets = mixup(images, torch.randint(4, (4,), generator=generator))
            optimizer.zero_grad()
            loss_of(model(images), targets).backward()  # batches of equal sizes: the plain mean is right
            optimizer.step()
            average.update(network)
        scheduler.step(epoch + 1)

    norms = [module for module in network.modules() if isinstance(module, syncbn.SyncBatchNorm)]
    if dist.get_rank() == 0:
        print(f"{len(norms)} layers, {norms[0].num_batches_tracked} steps")
    dist.barrier()
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

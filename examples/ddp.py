# ddp.py; run it with: torchrun --nproc-per-node 2 ddp.py
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import syncbn
from syncbn.models.resnet import resnet18

dist.init_process_group("gloo")  # "nccl", and a device for each rank, on GPUs
torch.manual_seed(0)
net = syncbn.convert(resnet18(num_classes=10, width=8), "sync")
model = DistributedDataParallel(net, forward_sync_buffers=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

samples = 3 + 2 * dist.get_rank()
images, labels = torch.randn(samples, 3, 64, 64), torch.randint(10, (samples,))
losses = cross_entropy(model(images), labels, reduction="none")
syncbn.mean_over_ranks(losses).backward()
optimizer.step()

if dist.get_rank() == 0:
    torch.save(net.state_dict(), "net.pt")  # the keys of nn.BatchNorm2d
dist.barrier()  # a rank that exits long before its peers may abort on its way out
del model
dist.destroy_process_group()

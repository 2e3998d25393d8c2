# fsdp2.py; run it with: torchrun --nproc-per-node 2 fsdp2.py
"""FSDP2: parameters are sharded over the ranks, running statistics are whole on each, and equal."""

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy

import syncbn
from syncbn.models.resnet import resnet18


def main():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = syncbn.convert(resnet18(num_classes=10, width=8, stem="cifar"), "sync")  # before it is sharded
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(3):
        images, labels = torch.randn(2, 3, 16, 16, generator=generator), torch.randint(10, (2,), generator=generator)
        loss = syncbn.mean_over_ranks(cross_entropy(model(images), labels, reduction="none"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_rank() == 0:
        print(f"a checkpoint of {len(whole)} tensors; mean of bn1: {whole['bn1.running_mean'].mean():.4f}")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

# gan_gradient_penalty.py; run it with: torchrun --nproc-per-node 2 gan_gradient_penalty.py
"""A critic with batch normalization and a gradient penalty: its norms are differentiated twice, over the ranks.

With batch normalization a score depends on the samples of all ranks. The gradient that autograd gives is that of all
ranks' scores together, as in one process.
"""

import torch
import torch.distributed as dist
from torch import nn

import syncbn


def average_gradients(module):
    """What DDP does; DDP itself runs no backward pass through a backward pass."""
    for parameter in module.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def main():
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    generator = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    syncbn.convert(critic, "sync")
    syncbn.convert(generator, "sync")
    optimizers = [torch.optim.Adam(module.parameters(), lr=1e-3, betas=(0.5, 0.9)) for module in (critic, generator)]

    torch.manual_seed(1 + dist.get_rank())
    penalties = []
    for _ in range(50):
        real = torch.tensor([2.0, -1.0]) + 0.1 * torch.randn(8, 2)
        fake = generator(torch.randn(8, 4)).detach()
        between = torch.lerp(real, fake, torch.rand(8, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square()
        penalties.append(penalty.mean().item())
        scores = critic(fake) - critic(real)  # real and generated samples in batches of their own
        optimizers[0].zero_grad()
        syncbn.mean_over_ranks(scores.squeeze(1) + 10 * penalty).backward()
        average_gradients(critic)
        optimizers[0].step()

        optimizers[1].zero_grad()
        syncbn.mean_over_ranks(-critic(generator(torch.randn(8, 4)))).backward()
        average_gradients(generator)
        optimizers[1].step()

    if dist.get_rank() == 0:
        print(f"gradient penalty: {penalties[0]:.3f} at first, {penalties[-1]:.3f} after {len(penalties)} steps")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

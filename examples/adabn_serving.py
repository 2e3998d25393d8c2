# adabn_serving.py; run it with: python adabn_serving.py
"""AdaBN at serving: images of another camera arrive, without labels; their statistics bring the network back."""

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import syncbn
from syncbn.models.cnn import CNN


def train(network, images, labels):
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            cross_entropy(network(images[batch]), labels[batch]).backward()
            optimizer.step()


class Server:
    """Answers requests; `observe` keeps images of the last requests, and `adapt` takes their statistics."""

    def __init__(self, network, keep=256):
        self.network, self.keep, self.seen = network.eval(), keep, torch.empty(0)

    def answer(self, images):
        self.seen = torch.cat([self.seen, images])[-self.keep :] if len(self.seen) else images
        with torch.no_grad():
            return self.network(images).argmax(1)

    def adapt(self):
        syncbn.adapt(self.network, self.seen.split(64), method="adabn")


def main():
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    network = CNN(norm="batch", num_classes=10, in_channels=1)
    train(network, images[:1200], labels[:1200])

    elsewhere, theirs = 0.4 * images[1200:] + 0.5, labels[1200:]  # less contrast, more light
    server = Server(network)
    before = (server.answer(elsewhere) == theirs).float().mean()
    server.adapt()
    after = (server.answer(elsewhere) == theirs).float().mean()
    print(f"another camera: {100 * before:.1f} % before, {100 * after:.1f} % after")


if __name__ == "__main__":
    main()

# transformers_trainer.py; run it with: torchrun --nproc-per-node 2 transformers_trainer.py
"""Hugging Face's Trainer: convert the model that it is given."""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import syncbn


class Images(Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 4}


def main():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    model = syncbn.convert(ResNetForImageClassification(config), "sync")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,  # leave it out on GPUs
            ddp_broadcast_buffers=False,
            per_device_train_batch_size=4,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Images())
        trainer.train()
        layer = next(module for module in model.modules() if isinstance(module, syncbn.SyncBatchNorm))
        if trainer.is_world_process_zero():
            print(f"{arguments.world_size} processes, {layer.num_batches_tracked} steps")


if __name__ == "__main__":
    main()

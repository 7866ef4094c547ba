"""ASAM in an Accelerate loop with gradient accumulation and a scheduler."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hf_sharp import ASAM, SharpStep


def main() -> None:
    """Train a small network on scikit-learn's digits and print the sharpness scalars of each epoch's last step."""
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=70)
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    sharp = SharpStep(model, optimizer, ASAM(rho=0.5), accelerator=accelerator)

    def loss_of(batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    for epoch in range(5):
        for i, batch in enumerate(loader):
            with accelerator.accumulate(model):
                loss = sharp(loss_of, batch, observe=i + 2 >= len(loader))  # was: loss_of and accelerator.backward
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
        shown = {name.removeprefix("sharpness/"): round(value, 4) for name, value in sharp.scalars().items()}
        accelerator.print(f"epoch {epoch}: loss {loss:.3f} {shown}")
    accelerator.end_training()


if __name__ == "__main__":
    main()

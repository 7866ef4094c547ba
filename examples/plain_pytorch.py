"""SAM in a plain PyTorch loop: `SharpStep` stands where forward and backward stood."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hf_sharp import SAM, SharpStep


def main() -> None:
    """Train a small network on scikit-learn's digits and print its training accuracy."""
    torch.manual_seed(0)
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels))
    loader = DataLoader(data, batch_size=64, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sharp = SharpStep(model, optimizer, SAM(rho=0.05))

    def loss_of(batch: list[torch.Tensor]) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    for epoch in range(5):
        for batch in loader:
            loss = sharp(loss_of, batch)  # was: loss = loss_of(batch); loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss:.3f}")

    x, y = data.tensors
    print(f"training accuracy {(model(x).argmax(-1) == y).float().mean():.3f}")


if __name__ == "__main__":
    main()

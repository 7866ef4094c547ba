"""What DDP broadcasts of buffers where each device has its own perturbation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from hf_sharp import GAM, SAM, AbstractMethod, SharpStep
from tests.models import collated, loss_of, mixed, rows, seeded

MICRO_BATCHES = 4


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """One rank is enough to count."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def steps(
    method: AbstractMethod | None, monkeypatch: pytest.MonkeyPatch, perturb_over: str = "device"
) -> tuple[list[int], list[torch.Tensor]]:
    """How often DDP broadcasts the buffers in each of two steps, and what they are after the first; None: without this
    package."""
    count, usual = 0, DistributedDataParallel._sync_buffers

    def counted(ddp: DistributedDataParallel) -> None:
        nonlocal count
        count += 1
        usual(ddp)

    monkeypatch.setattr(DistributedDataParallel, "_sync_buffers", counted)
    model = DistributedDataParallel(seeded(mixed))
    optimizer = SGD(model.parameters(), lr=0.1)
    sharp = None if method is None else SharpStep(model, optimizer, method, perturb_over=perturb_over)
    data, found, buffers = rows("mixed", 2 * MICRO_BATCHES * 4), [], []
    torch.manual_seed(0)
    for step in range(2):
        count = 0
        for i in range(MICRO_BATCHES):
            first = 4 * (MICRO_BATCHES * step + i)
            batch, last = collated(data[first : first + 4]), i == MICRO_BATCHES - 1
            if sharp is not None:
                sharp(lambda b: loss_of(model)(b) / MICRO_BATCHES, batch, last=last, micro_batches=MICRO_BATCHES)
                continue
            model.require_backward_grad_sync = last
            (loss_of(model)(batch) / MICRO_BATCHES).backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(count)
        buffers = buffers or [x.clone() for x in model.buffers()]
    return found, buffers


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("method", [SAM(rho=0.1), GAM(rho=0.1)])
def test_buffers_are_broadcast_once_per_step(method: AbstractMethod, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as by plain DDP, whatever the method's passes; and in the first step they come to the same bits."""
    plain, expected = steps(None, monkeypatch)
    assert plain == [1, 1]
    found, buffers = steps(method, monkeypatch)
    assert found == plain
    assert len(buffers) == 3
    assert all(torch.equal(x, y) for x, y in zip(buffers, expected, strict=True))


@pytest.mark.usefixtures("process_group")
def test_buffers_are_broadcast_once_per_exact_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in every other pass over all ranks' samples: two gradients and two products, not once more per micro-batch."""
    assert steps(GAM(rho=0.1, hvp="exact"), monkeypatch, "batch")[0] == [4, 4]

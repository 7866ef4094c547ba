"""What each rank of the tests of models' options runs: a tied Llama with one option each, three steps of two methods.

    torchrun --nproc-per-node 2 -m tests.workers.options KIND FILE

KIND is ddp, fsdp2, zero1, zero2 or zero3. Without torchrun, as ``alone``, it computes the same in one process on the union
of the ranks' data.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from hf_sharp import GSAM, RSAM, AbstractMethod, SharpStep
from tests.models import collated, llama, rows, seeded
from tests.workers.engines import engine, full_weights

RANK = int(os.environ.get("RANK", "0"))
RANKS, MICRO_BATCHES = 2, 2
SIDE = torch.linspace(0.25, 0.75, 3)
"""What the weight of `Fickle` starts from."""
METHODS: dict[str, AbstractMethod] = {"gsam": GSAM(rho=0.1), "rsam": RSAM(rho=0.1, gamma=0.02)}


class WithSpare(nn.Module):
    """A model with a layer that no forward uses."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core, self.spare = core, seeded(lambda: nn.Linear(3, 3))

    def forward(self, **batch: Tensor) -> Any:
        return self.core(**batch)


class Fickle(nn.Module):
    """A model with a weight that the first pass of each step uses and the second does not."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core, self.side, self.calls = core, nn.Parameter(SIDE.clone()), 0

    def forward(self, **batch: Tensor) -> Any:
        out = self.core(**batch)
        if self.calls % (2 * MICRO_BATCHES) < MICRO_BATCHES:
            out["loss"] = out["loss"] + (out["logits"][..., :3] * self.side).mean()
        self.calls += 1
        return out


def plain() -> nn.Module:
    """The model as it is: tied embeddings, SDPA attention."""
    model: Any = llama(dropout=0.0)
    assert model.config._attn_implementation == "sdpa"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    return model


def checkpointed(reentrant: bool) -> nn.Module:
    """With gradient checkpointing."""
    model: Any = llama(dropout=0.0)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    return model.train()


def frozen() -> nn.Module:
    """With the first layer frozen."""
    model = llama(dropout=0.0)
    for name, p in model.named_parameters():
        p.requires_grad_("layers.0." not in name)
    return model


def adapted(model: nn.Module) -> nn.Module:
    """With LoRA adapters, whose B is not zero as it is when training starts."""
    torch.manual_seed(0)
    wrapped: Any = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return wrapped


OPTIONS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "checkpointing": lambda: checkpointed(reentrant=False),
    "reentrant": lambda: checkpointed(reentrant=True),
    "frozen": frozen,
    "lora": lambda: adapted(plain()),
    "lora_beside": lambda: adapted(plain()),
    "unused": lambda: WithSpare(plain()),
    "fickle": lambda: Fickle(plain()),
    "compiled": plain,
}


def average(p: Tensor) -> None:
    """What the Trainer hangs on adapters beside sharded weights: their gradient's mean over the ranks."""
    assert p.grad is not None
    dist.all_reduce(p.grad)
    p.grad /= RANKS


def sharded(option: str) -> nn.Module:
    """The model under FSDP2, each layer by itself."""
    model: Any = plain() if option == "lora_beside" else OPTIONS[option]()
    model = model.double()
    layers = [m for m in model.modules() if type(m).__name__ == "LlamaDecoderLayer"]
    for module in (*layers, model):
        fully_shard(module)
    if option == "lora_beside":
        model = adapted(model).double()
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(average)
    return model


def batch_of(kind: str, step: int, micro: int) -> dict[str, Tensor]:
    """This rank's micro-batch, or the union of all ranks'."""
    ranks = range(RANKS) if kind == "alone" else (RANK,)
    return collated([row for rank in ranks for row in rows("llama", 2, seed=100 * step + 10 * micro + rank)])


def train(kind: str, option: str, method: AbstractMethod) -> Tensor:
    """The trainable weights after three steps of two micro-batches."""
    accelerator, share = None, MICRO_BATCHES
    model: Any
    optimizer: Any
    if kind.startswith("zero"):
        model, optimizer, accelerator = engine(kind, OPTIONS[option](), MICRO_BATCHES, None)
        share = 1
        assert model.zero_optimization_stage() == int(kind[4])
        if option == "compiled":
            model.compile(backend="aot_eager")  # DeepSpeed's own, which accelerate calls
            assert model.is_compiled
    else:
        model = sharded(option) if kind == "fsdp2" else OPTIONS[option]().double()
        if kind == "ddp":
            model = DistributedDataParallel(model, find_unused_parameters=option in ("unused", "fickle"))
        if kind == "fsdp2":
            whole = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
            assert bool(whole) == (option == "lora_beside")
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
        if option == "compiled":
            model = torch.compile(model, backend="aot_eager")
    sharp = SharpStep(model, optimizer, method, accelerator=accelerator, steps=3)
    forwards = Counter[str]()
    if option != "compiled":  # a hook would cut the graph
        for m in model.modules():
            m.register_forward_hook(lambda module, *_: forwards.update([type(module).__name__]))
    for step in range(3):
        for micro in range(MICRO_BATCHES):
            last = micro == MICRO_BATCHES - 1
            if accelerator is not None:
                accelerator.gradient_state._set_sync_gradients(last)
            batch = batch_of(kind, step, micro)
            sharp(lambda b: model(**b)["loss"] / share, batch, last=last, micro_batches=MICRO_BATCHES)
        if accelerator is None:
            optimizer.step()
            optimizer.zero_grad()
    if option == "compiled":
        assert counters["stats"]["unique_graphs"] > 0  # nothing else compiles here
    else:  # with checkpointing a layer's parts run again in the backward
        again = 1 + (option in ("checkpointing", "reentrant"))
        assert forwards["LlamaAttention"] == 2 * again * forwards["Embedding"] > 0
    if accelerator is not None:
        return full_weights(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).detach().double().reshape(-1) for p in trainable])


def main() -> None:
    """Run every option, make sure that the ranks agree, and let rank 0 write the results."""
    kind, file = sys.argv[1:]
    if kind != "alone":
        dist.init_process_group("gloo")
    found = {}
    for option in OPTIONS:
        if kind.startswith("zero") and option == "lora_beside":
            continue  # ZeRO shards adapters with the rest
        for name, method in METHODS.items():
            found[f"{option} {name}"] = w = train(kind, option, method)
            if kind != "alone":
                other = w.clone()
                dist.broadcast(other, src=0)
                assert torch.equal(other, w), f"the ranks ended with different weights: {option} {name}"
    if RANK == 0:
        torch.save(found, file)
    if kind != "alone":
        dist.barrier()


if __name__ == "__main__":
    main()

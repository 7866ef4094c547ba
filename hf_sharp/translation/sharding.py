"""A model whose weights several processes hold in pieces, whole in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.initialization import no_init_weights

from hf_sharp.backends.fsdp import reshard
from hf_sharp.translation.model import FairseqTransformer


def is_sharded(model: nn.Module, accelerator: Accelerator) -> bool:
    """Whether this process holds pieces of the weights only: under FSDP2 and ZeRO-3."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return bool(accelerator.state.deepspeed_plugin.hf_ds_config.is_zero3())
    return accelerator.distributed_type == DistributedType.FSDP or any(isinstance(p, DTensor) for p in model.parameters())


@torch.no_grad()
def whole(model: FairseqTransformer, accelerator: Accelerator) -> FairseqTransformer:
    """The model itself, or where it is sharded a plain copy in each process; all processes must ask.

    The copy has all weights on this device; it does not follow the model's training.
    """
    if not is_sharded(model, accelerator):
        return model
    reshard(model.modules())
    with no_init_weights():  # draws no random numbers
        copy = FairseqTransformer(model.config)
    copy.tie_weights()
    copy.to(device=accelerator.device, dtype=model.dtype)  # type: ignore[call-arg]
    own = dict(copy.named_parameters(remove_duplicate=False))
    with _gathered(model, accelerator) as weights:
        for name, weight in weights:
            own[name].copy_(weight)
    return copy.train(model.training)


@contextmanager
def _gathered(model: nn.Module, accelerator: Accelerator) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The whole weights, by the names that they have without wrappers; each is made when it is asked for."""
    named = [(name.replace("_checkpoint_wrapped_module.", ""), p) for name, p in model.named_parameters()]
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([p for _, p in named]):
            yield iter(named)
    else:
        yield ((name, p.full_tensor() if isinstance(p, DTensor) else p) for name, p in named)

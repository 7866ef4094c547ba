"""Weights in pieces: what accelerate's FSDP2 makes of the shared tables, and the whole copy. One rank is enough for both."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from hf_sharp.translation.batches import Collator
from hf_sharp.translation.search import BeamSearch
from hf_sharp.translation.sharding import whole
from tests.translation.cases import SHARED, pairs_of_numbers, small_model


@pytest.fixture
def accelerator() -> Iterator[Any]:
    """As much of an Accelerator under configs/accelerate/fsdp2.yaml as there is on one CPU process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
        )
        yield SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=plugin),
            distributed_type=DistributedType.FSDP,
            device=torch.device("cpu"),
            mixed_precision="no",
            is_main_process=True,
            torch_device_mesh=init_device_mesh("cpu", (1,), mesh_dim_names=("dp_shard",)),
            parallelism_config=SimpleNamespace(fsdp_dim_names=("dp_shard",)),
        )
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
@pytest.mark.parametrize("shared", SHARED)
def test_whole_copy_of_a_sharded_model(shared: str, accelerator: Any) -> None:
    """Same weights, ties, logits and translations, also after an evaluation, which leaves the root's weights whole."""
    plain = small_model(share_embeddings=shared, dropout=0.0)
    sharded = small_model(share_embeddings=shared, dropout=0.0)
    sharded.load_state_dict(plain.state_dict())
    assert whole(plain, SimpleNamespace(distributed_type=DistributedType.NO)) is plain  # type: ignore[arg-type]
    sharded = fsdp2_prepare_model(accelerator, sharded)
    assert all(isinstance(p, DTensor) for p in sharded.parameters())
    batch = Collator()([*pairs_of_numbers(5)])
    sharded(**batch).loss.backward()
    with torch.no_grad():
        assert torch.equal(sharded.eval()(**batch).logits, plain.eval()(**batch).logits)
    state = torch.get_rng_state()
    copy = whole(sharded, accelerator)
    assert torch.equal(torch.get_rng_state(), state)
    assert not copy.training
    weights = dict(copy.named_parameters())
    assert weights.keys() == dict(plain.named_parameters()).keys()
    assert not any(isinstance(w, DTensor) for w in weights.values())
    assert all(torch.equal(w, weights[name]) for name, w in plain.named_parameters())
    sources = pairs_of_numbers(5)["input_ids"][:]
    assert BeamSearch(2, longest=6)(copy, sources) == BeamSearch(2, longest=6)(plain, sources)

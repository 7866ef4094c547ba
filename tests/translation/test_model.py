"""The model: sizes, ties, initialisation, and what reaches the loss."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from hf_sharp.translation.batches import Collator
from hf_sharp.translation.loss import LabelSmoothing
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig, FairseqTransformerModel
from hf_sharp.translation.search import BeamSearch
from tests.translation.cases import SHARED, pairs_of_numbers, small_model


def parameters(source: int, target: int, *, shared: str, size: str) -> int:
    config = FairseqTransformerConfig.of_size(size, source, target, share_embeddings=shared)
    with torch.device("meta"):
        model = FairseqTransformer(config)
    model.tie_weights()
    return sum(w.numel() for w in model.parameters())


def test_iwslt_model_has_as_many_parameters_as_fairseq_reports() -> None:
    assert parameters(8848, 6632, shared="decoder", size="iwslt") == 39_469_056


@pytest.mark.parametrize(("shared", "tables"), [("all", 1), ("decoder", 2), ("none", 3)])
def test_parameters_by_hand(shared: str, tables: int) -> None:
    width, inner, layers, symbols = 256, 512, 3, 100
    attention, norm = 4 * (width * width + width), 2 * width
    feed_forward = 2 * width * inner + inner + width
    by_hand = layers * (3 * attention + 5 * norm + 2 * feed_forward) + tables * symbols * width
    assert parameters(symbols, symbols, shared=shared, size="small") == by_hand


@pytest.mark.parametrize("shared", SHARED)
def test_ties_hold_after_saving_loading_and_a_step(shared: str, tmp_path: Path) -> None:
    small_model(share_embeddings=shared).save_pretrained(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert type(model) is FairseqTransformer
    assert AutoConfig.from_pretrained(tmp_path).share_embeddings == shared
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = Collator()([*pairs_of_numbers(3)])
    before = model.model.decoder.output_projection.weight.detach().clone()
    model(**batch).loss.backward()
    optimizer.step()
    core = model.model
    tables = core.encoder.embed_tokens.weight, core.decoder.embed_tokens.weight, core.decoder.output_projection.weight
    same = [torch.equal(tables[i], tables[j]) for i, j in ((0, 1), (1, 2))]
    assert same == {"all": [True, True], "decoder": [False, True], "none": [False, False]}[shared]
    assert not torch.equal(tables[2], before)


def test_initialisation_is_fairseqs() -> None:
    torch.manual_seed(0)
    model = FairseqTransformer(FairseqTransformerConfig.of_size("small", 2000, 2000, share_embeddings="none"))
    layer, width = model.model.decoder.layers[0], 256
    bound = math.sqrt(6 / (2 * width))
    for attention in (layer.self_attn, layer.encoder_attn):
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            assert projection.weight.abs().max().item() == pytest.approx(bound / math.sqrt(2), rel=1e-3)
            assert projection.bias.abs().max().item() == pytest.approx(1 / math.sqrt(width), rel=0.05)
        assert attention.out_proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert not attention.out_proj.bias.any()
    assert layer.fc1.weight.abs().max().item() == pytest.approx(1 / math.sqrt(width), rel=1e-3)
    assert layer.fc2.bias.abs().max().item() == pytest.approx(1 / math.sqrt(512), rel=0.05)
    for table in (model.model.encoder.embed_tokens, model.model.decoder.embed_tokens):
        assert table.weight.std().item() == pytest.approx(width**-0.5, rel=0.01)
        assert not table.weight[1].any()
    assert model.model.decoder.output_projection.weight[1].any()


@pytest.mark.parametrize("caching", [None, True, False])
def test_a_token_does_not_see_what_comes_after_it(caching: bool | None) -> None:
    model = small_model(dropout=0.0).eval()
    sources, targets = torch.tensor([[4, 5, 2]]), torch.tensor([[2, 6, 7, 8]])
    other = targets.clone()
    other[0, 3] = 9
    logits = [model(sources, decoder_input_ids=given, use_cache=caching).logits for given in (targets, other)]
    assert torch.equal(logits[0][0, :3], logits[1][0, :3])
    assert not torch.allclose(logits[0][0, 3], logits[1][0, 3])


def test_padding_carries_no_loss() -> None:
    """A short pair weighs the same alone and beside a long one, also in the gradient."""
    model = small_model(dropout=0.0)
    data = pairs_of_numbers(7)
    short, long = data[0], data[6]
    gradients = []
    for batches in ([[short, long]], [[short], [long]]):
        model.zero_grad()
        total = torch.zeros(())
        for rows in batches:
            batch = Collator()(rows)
            labels = batch.pop("labels")
            total = total + LabelSmoothing(0.1).total(model(**batch).logits, labels)
        total.backward()
        gradients.append([w.grad.clone() for w in model.parameters() if w.grad is not None])
    for joined, apart in zip(*gradients, strict=True):
        torch.testing.assert_close(joined, apart, rtol=1e-4, atol=1e-5)


def test_labels_stay_as_they_are_and_give_the_mean_per_token() -> None:
    model = small_model(dropout=0.0).eval()
    batch = Collator(generating=True)([*pairs_of_numbers(5)])
    labels = batch["labels"].clone()
    output = model(**batch)
    assert torch.equal(batch["labels"], labels)
    assert (labels == -100).any()
    logits = output.logits.log_softmax(-1)
    by_hand = [-logits[i, j, token] for i, row in enumerate(labels) for j, token in enumerate(row) if token != -100]
    torch.testing.assert_close(output.loss, torch.stack(by_hand).mean())


def test_sides_of_padding_are_equal() -> None:
    model = small_model(dropout=0.0).eval()
    right, left = torch.tensor([[4, 5, 2, 1, 1]]), torch.tensor([[1, 1, 4, 5, 2]])
    targets = torch.tensor([[2, 6]])
    found = [model(x, x.ne(1).long(), targets).logits for x in (right, left)]
    torch.testing.assert_close(*found)


def test_layers_are_sharded_one_by_one() -> None:
    """FSDP's automatic wrapping goes by these names."""
    model = small_model()
    kinds = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= kinds


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_activations_computed_anew_give_the_same_gradient() -> None:
    """To the bit, with dropout; each layer is entered twice."""
    model = small_model(dropout=0.3).train()
    batch = Collator()([*pairs_of_numbers(7)])
    found, entered = [], []
    layers = [*model.model.encoder.layers, *model.model.decoder.layers]
    for layer in layers:
        layer.fc1.register_forward_hook(lambda *_: entered.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        entered.clear()
        torch.manual_seed(0)
        loss = model(**batch).loss
        loss.backward()
        found.append([loss.detach(), *(w.grad.clone() for w in model.parameters() if w.grad is not None)])
        assert len(entered) == len(layers) * (1 + checkpointing)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("shared", SHARED)
def test_base_model_is_the_same_model_without_its_loss(shared: str, tmp_path: Path) -> None:
    model = small_model(share_embeddings=shared, dropout=0.0).eval()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is FairseqTransformerModel
    batch = Collator()([*pairs_of_numbers(3)])
    del batch["labels"]
    assert torch.equal(base(**batch, use_cache=False)[0], model(**batch).logits)


def test_generation_stops_at_the_positions_by_itself() -> None:
    model = small_model(dropout=0.0).eval()
    assert model.generation_config.max_length == 64
    assert FairseqTransformerConfig().max_length == 200
    torch.nn.init.zeros_(model.model.decoder.output_projection.weight)  # no symbol is better than another: it goes on
    tokens = model.generate(torch.tensor([[4, 2]]), max_new_tokens=64, num_beams=1, eos_token_id=19)
    assert tokens.shape[1] <= 65


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["cast", "loaded"])
def test_weights_of_low_precision(way: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Positions, logits and scores are float32's but for rounding; there is a gradient, and both searches run."""
    torch.manual_seed(0)
    plain = small_model(dropout=0.0).eval()
    plain.save_pretrained(tmp_path)
    if way == "cast":
        model = small_model(dropout=0.0).to(dtype)  # type: ignore[call-arg]
        model.load_state_dict(plain.state_dict())
    else:
        model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, dtype=dtype)
    model.eval()
    for side, other in ((model.model.encoder, plain.model.encoder), (model.model.decoder, plain.model.decoder)):
        assert side.embed_positions.table.dtype == side.embed_tokens.weight.dtype == dtype
        assert torch.equal(side.embed_positions.table, other.embed_positions.table.to(dtype))
    batch = Collator()([*pairs_of_numbers(7)])
    output, expected = model(**batch), plain(**batch)
    assert output.logits.dtype == dtype
    torch.testing.assert_close(output.logits.float(), expected.logits, rtol=0, atol=0.05)
    assert expected.logits.std() > 0.2
    output.loss.backward()
    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())
    sources = [row["input_ids"] for row in pairs_of_numbers(7)]
    best, of_plain = (BeamSearch(3, longest=6)(one, sources) for one in (model, plain))
    for found, also in zip(best, of_plain, strict=True):
        assert found.score == pytest.approx(also.score, abs=0.05)
    tokens = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=6, num_beams=2)
    assert len(tokens) == 7

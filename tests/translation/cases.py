"""What several tests of translation share."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_sharp.translation.conversion import from_fairseq
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig

DATA = Path(__file__).parent / "data"
SHARED = ("all", "decoder", "none")


def figures(shared: str) -> dict[str, Any]:
    """What fairseq gave for a checkpoint of the tests."""
    return json.loads((DATA / shared / "figures.json").read_text(encoding="utf-8"))


def converted(shared: str, folder: Path) -> FairseqTransformer:
    """The checkpoint, through the converter."""
    files = DATA / shared
    parts = (files / "checkpoint.pt", files / "dict.de.txt", files / "dict.en.txt")
    return from_fairseq(*parts, folder, moses=False, lower=False)


def small_model(symbols: int = 20, **fields: Any) -> FairseqTransformer:
    """A model of a few thousand parameters."""
    shape = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = FairseqTransformerConfig(
        src_vocab_size=symbols, tgt_vocab_size=symbols, max_position_embeddings=64, **(shape | heads | fields)
    )
    return FairseqTransformer(config)


def pairs_of_numbers(number: int, symbols: int = 20) -> Dataset:
    """Pairs whose target is the source in reverse; lengths from 2 to 8."""
    rows = []
    for i in range(number):
        words = [4 + (7 * i + 3 * j) % (symbols - 4) for j in range(1 + i % 7)]
        rows.append({"input_ids": [*words, 2], "labels": [*reversed(words), 2]})
    return Dataset.from_list(rows)


def write_memory_mapped(prefix: Path, rows: list[list[int]], kind: str) -> None:
    """A data set as fairseq's format describes it, written here by hand."""
    code = {"u2": 8, "i4": 4, "i8": 5}[kind]
    sizes = np.array([len(row) for row in rows], "<i4")
    starts = np.array([sum(map(len, rows[:i])) for i in range(len(rows))], "<i8") * np.dtype(kind).itemsize
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, code, len(rows))
    Path(f"{prefix}.idx").write_bytes(head + sizes.tobytes() + starts.tobytes())
    Path(f"{prefix}.bin").write_bytes(b"".join(np.array(row, f"<{kind}").tobytes() for row in rows))

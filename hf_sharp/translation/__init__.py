"""Translation as fairseq does it, on Hugging Face; importing it makes the Auto classes know the model and its tokenizer."""

from hf_sharp.translation.loss import LabelSmoothing
from hf_sharp.translation.model import FairseqTransformer, FairseqTransformerConfig
from hf_sharp.translation.search import BeamSearch, Hypothesis
from hf_sharp.translation.tokenizer import TranslationTokenizer

__all__ = [
    "BeamSearch",
    "FairseqTransformer",
    "FairseqTransformerConfig",
    "Hypothesis",
    "LabelSmoothing",
    "TranslationTokenizer",
]

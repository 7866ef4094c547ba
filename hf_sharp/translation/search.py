"""Beam search as fairseq does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_sharp.translation.batches import check_length, token_batches
from hf_sharp.translation.dictionary import EOS, PAD
from hf_sharp.translation.incremental import IncrementalDecoder
from hf_sharp.translation.model import FairseqTransformer


@dataclass(frozen=True)
class Hypothesis:
    """A translation.

    Attributes:
        tokens: its numbers, without ``</s>``.
        score: log-probability with ``</s>``, in nats, divided by ``length ** length_penalty``.
    """

    tokens: list[int]
    score: float


@dataclass(frozen=True)
class BeamSearch:
    """Finds likely translations; with the same weights the same ones as ``fairseq-generate``.

    A sentence is done when it has as many finished hypotheses as the beam is wide, and leaves the batch then.
    ``model.generate(num_beams=5, early_stopping=True, min_new_tokens=2)`` stops alike and gives
    nearly the same, more slowly.

    Attributes:
        beam: hypotheses that are followed, at least 1 (which is greedy search).
        length_penalty: above 1 favours long translations, below 1 short ones.
        patience: finished hypotheses that end the search, in units of the beam, at least 1 (Kasai et al., 2022). Where the
            short and wrong finish first, as in translations of a few words, more than 1 lets the right ones finish, too.
        longest: tokens of a translation, without ``</s>``.
        max_tokens: source tokens per batch.

    Raises:
        ValueError: a number is out of its range.
    """

    beam: int = 5
    length_penalty: float = 1.0
    patience: float = 1.0
    longest: int = 200
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name, number in (
            ("beam", self.beam),
            ("longest", self.longest),
            ("patience", self.patience),
            ("max_tokens", self.max_tokens),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}. Use e.g. {BeamSearch.__dict__[name]}.")

    @torch.inference_mode()
    def __call__(
        self, model: FairseqTransformer, sources: Sequence[Sequence[int]], *, progress: bool = False
    ) -> list[Hypothesis]:
        """The best translation of each source.

        Args:
            model: is put into evaluation mode for the time.
            sources: numbers, each with its ``</s>``.
            progress: whether to show a bar.

        Returns:
            As many hypotheses, in the sources' order.

        Raises:
            ValueError: a source is empty or longer than the model's positions, or the model gives no numbers.
        """
        for number, source in enumerate(sources):
            check_length(len(source), model.config.max_position_embeddings, f"source {number}", shortest=1)
        lengths = [len(source) for source in sources]
        best: list[Hypothesis] = [Hypothesis([], 0.0)] * len(sources)
        was_training = model.training
        model.eval()
        try:
            with tqdm(total=len(sources), desc="translating", unit=" sentences", disable=not progress) as bar:
                for batch in reversed(token_batches(lengths, lengths, max(self.max_tokens, *lengths, 1))):
                    for number, found in zip(batch, self._search(model, [sources[n] for n in batch]), strict=True):
                        best[number] = found
                    bar.update(len(batch))
        finally:
            model.train(was_training)
        return best

    def _search(self, model: FairseqTransformer, sources: Sequence[Sequence[int]]) -> list[Hypothesis]:
        width = max(map(len, sources))
        padded = torch.tensor([[*source, *[PAD] * (width - len(source))] for source in sources], device=model.device)
        longest = min(self.longest, model.config.max_position_embeddings - 1)
        state = _State.begun(len(sources), self.beam, round(self.beam * self.patience), padded.device)
        decoder = IncrementalDecoder(model, padded)
        while state.left.numel():
            place = state.tokens.size(2) - 1
            scores = decoder(state.tokens[:, :, -1], place).float().log_softmax(-1)
            scores[..., PAD] = float("-inf")
            if place == 0:
                scores[..., EOS] = float("-inf")
            elif place >= longest:
                finishing = scores[..., EOS].clone()
                scores.fill_(float("-inf"))
                scores[..., EOS] = finishing
            rows, sentences = state.advance(scores, self.length_penalty, last=place >= longest)
            if state.left.numel():
                decoder.select(rows, sentences)
        if not all(state.finished):
            raise ValueError(
                "The model must give a number to every symbol, got NaN or infinity, and so no translation. "
                "Check its weights and the training's loss."
            )
        return [max(found, key=lambda hypothesis: hypothesis.score) for found in state.finished]


@dataclass
class _State:
    """What a search has found so far.

    Attributes:
        tokens: of the open hypotheses, with the first ``</s>``, (sentences, beam, length).
        scores: their log-probabilities, (sentences, beam).
        left: which sentences of the batch these are, (sentences).
        enough: finished hypotheses with which a sentence is done.
        finished: the hypotheses of each sentence of the batch.
    """

    tokens: Tensor
    scores: Tensor
    left: Tensor
    enough: int
    finished: list[list[Hypothesis]] = field(default_factory=list)

    @classmethod
    def begun(cls, sentences: int, beam: int, enough: int, device: torch.device) -> _State:
        tokens = torch.full((sentences, beam, 1), EOS, device=device)
        scores = torch.full((sentences, beam), float("-inf"), device=device)
        scores[:, 0] = 0.0  # the hypotheses are equal still: look at one
        return cls(tokens, scores, torch.arange(sentences, device=device), enough, [[] for _ in range(sentences)])

    def advance(self, symbol_scores: Tensor, length_penalty: float, *, last: bool) -> tuple[Tensor, Tensor | None]:
        """Takes the best 2 x beam continuations: those that end are finished, the best others go on.

        Returns:
            The rows that go on, and the sentences that do where some are done, for `IncrementalDecoder.select`.
        """
        sentences, beam, symbols = symbol_scores.shape
        candidates = (self.scores.unsqueeze(2) + symbol_scores).view(sentences, -1)
        scores, places = candidates.topk(min(2 * beam, candidates.size(1) - 1), dim=1)
        parents, chosen = places // symbols, places % symbols
        ends = chosen.eq(EOS) & scores.isfinite()
        self._finish(ends[:, :beam], scores, parents, length_penalty)
        counts = torch.tensor([len(self.finished[sentence]) for sentence in self.left.tolist()], device=scores.device)
        going = counts < self.enough
        if last:
            going = torch.zeros_like(going)
        order = (ends.long() * scores.size(1) + torch.arange(scores.size(1), device=scores.device)).topk(
            beam, dim=1, largest=False, sorted=True
        )[1]
        sentences_left = None
        if not going.all():
            sentences_left = going.nonzero().squeeze(1)
            order, parents, chosen, scores = (x[sentences_left] for x in (order, parents, chosen, scores))
            self.left, self.tokens = self.left[sentences_left], self.tokens[sentences_left]
        parents, chosen, self.scores = (x.gather(1, order) for x in (parents, chosen, scores))
        kept = self.tokens.gather(1, parents.unsqueeze(2).expand(-1, -1, self.tokens.size(2)))
        self.tokens = torch.cat([kept, chosen.unsqueeze(2)], dim=2)
        firsts = torch.arange(sentences, device=scores.device) if sentences_left is None else sentences_left
        return (parents + beam * firsts.unsqueeze(1)).flatten(), sentences_left

    def _finish(self, ends: Tensor, scores: Tensor, parents: Tensor, length_penalty: float) -> None:
        length = self.tokens.size(2)
        for row, column in ends.nonzero().tolist():
            found = self.finished[int(self.left[row])]
            if len(found) < self.enough:
                tokens = self.tokens[row, parents[row, column], 1:].tolist()
                found.append(Hypothesis(tokens, float(scores[row, column]) / length**length_penalty))

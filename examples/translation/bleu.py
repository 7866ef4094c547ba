"""Translate with a trained model and score it, score a file, or compare two systems.

python examples/translation/bleu.py translate runs/multi30k/asam --data my/multi30k --output_dir scores
python examples/translation/bleu.py score predictions.txt references.txt --output_dir scores
python examples/translation/bleu.py compare adam/predictions.txt asam/predictions.txt references.txt
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from hf_sharp.checkpoints import found
from hf_sharp.evaluation.bleu import Scores, compare, score, token_bleu
from hf_sharp.translation.data import load_data, load_tokenizer
from hf_sharp.translation.files import check_new_folder, new_folder
from hf_sharp.translation.model import FairseqTransformer
from hf_sharp.translation.pairs import SPLITS, TextSettings
from hf_sharp.translation.search import BeamSearch


def lines(file: Path) -> list[str]:
    """A file's lines, empty ones included."""
    if not file.is_file():
        raise ValueError(f"There must be a file with one sentence per line, got {str(file)!r}. Check the path.")
    return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def parallel(*files: Path) -> list[list[str]]:
    """The lines of files that go together."""
    read = [lines(file) for file in files]
    for file, rows in zip(files, read, strict=True):
        if len(rows) != len(read[-1]):
            raise ValueError(
                f"Files must have as many lines as the references, got {len(rows)} in {file} and {len(read[-1])} in "
                f"{files[-1]}. Score them line by line, empty lines included."
            )
    return read


def write(folder: str, rows: Iterable[dict[str, object]], scores: Scores) -> None:
    """One JSON line per sentence, and the scores, in a new folder."""
    with new_folder(folder) as new:
        with (new / "sentences.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (new / "scores.json").write_text(json.dumps(asdict(scores), indent=2) + "\n", encoding="utf-8")


def translate(args: argparse.Namespace) -> None:
    """Translates a split; writes one JSON line per sentence, and the scores."""
    search = BeamSearch(args.beam, args.length_penalty, args.patience, args.longest, args.max_tokens)
    check_new_folder(args.output_dir)
    with found(args.model):
        model = FairseqTransformer.from_pretrained(args.model).to(args.device)
    tokenizer = load_tokenizer(args.model, moses=None if args.moses is None else args.moses == "true")
    tokenizer.check(model.config, args.model)
    source, target = tokenizer.languages
    longest, settings = model.config.max_position_embeddings, TextSettings(source, target)
    data = load_data(args.data, settings, longest, tokenizer=tokenizer, name=args.data_config, splits=[args.split])
    numbers = data.numbers[args.split]
    best = search(model, numbers["input_ids"], progress=True)
    words = [tokenizer.decoded(hypothesis.tokens) for hypothesis in best]
    texts = [tokenizer.text(line) for line in words]
    sources, references = data.sources(args.split), data.references(args.split)
    scores = score(texts, references, token_hypotheses=words, token_references=numbers["target"])
    columns = zip(sources, references, texts, words, numbers["target"], best, strict=True)
    rows = (
        {"source": sentence, "prediction": text, "reference": reference, "score": hypothesis.score}
        | {"token_bleu": token_bleu([tokens], [reference_tokens])}
        for sentence, reference, text, tokens, reference_tokens, hypothesis in columns
    )
    write(args.output_dir, rows, scores)
    print(scores)


def score_files(args: argparse.Namespace) -> None:
    """Scores a file of translations; writes one JSON line per sentence, and the scores, where a folder is named."""
    if args.output_dir is not None:
        check_new_folder(args.output_dir)
    texts, references = parallel(args.hypotheses, args.references)
    scores = score(texts, references)
    if args.output_dir is not None:
        columns = zip(texts, references, strict=True)
        rows = ({"prediction": t, "reference": r, "token_bleu": token_bleu([t], [r])} for t, r in columns)
        write(args.output_dir, rows, scores)
    print(scores)


def main() -> None:
    """One of the three commands."""
    parser = argparse.ArgumentParser(description="BLEU of translations.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("translate", help="translate with a model, and score")
    one.add_argument("model", help="a trained model's folder")
    one.add_argument("--data", default="numbers", help="as for train.py (%(default)s)")
    one.add_argument("--data_config", help="the data set's configuration, as 'de-en' of wmt16")
    one.add_argument("--moses", choices=["true", "false"], help="whether to tokenise; by default as in training")
    one.add_argument("--split", default="test", choices=SPLITS, help="(%(default)s)")
    one.add_argument("--output_dir", default="scores", help="a new or empty folder for the results (%(default)s)")
    one.add_argument("--beam", type=int, default=5, help="hypotheses that are followed (%(default)s)")
    one.add_argument("--length_penalty", type=float, default=1.0, help="(%(default)s)")
    one.add_argument("--patience", type=float, default=1.0, help="above 1 lets the search go on (%(default)s)")
    one.add_argument("--longest", type=int, default=200, help="tokens of the longest translation (%(default)s)")
    one.add_argument("--max_tokens", type=int, default=4096, help="source tokens per batch (%(default)s)")
    one.add_argument("--device", default="cpu", help="(%(default)s)")
    two = commands.add_parser("score", help="score a file of translations")
    two.add_argument("hypotheses", type=Path)
    two.add_argument("references", type=Path)
    two.add_argument("--output_dir", help="a new or empty folder for the scores and one line per sentence")
    three = commands.add_parser("compare", help="two systems, by paired bootstrap resampling")
    for name in ("baseline", "system", "references"):
        three.add_argument(name, type=Path)
    three.add_argument("--samples", type=int, default=1000, help="resampled test sets (%(default)s)")
    three.add_argument("--tokens", action="store_true", help="the files hold tokens between blanks: token BLEU")
    args = parser.parse_args()
    if args.command == "translate":
        translate(args)
    elif args.command == "score":
        score_files(args)
    else:
        files = parallel(args.baseline, args.system, args.references)
        print(compare(*files, samples=args.samples, tokens=args.tokens))


if __name__ == "__main__":
    main()

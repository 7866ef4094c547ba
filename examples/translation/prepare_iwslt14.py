"""From the IWSLT'14 archive to a data set for ``train.py``, as fairseq prepares it.

    wget http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz
    python examples/translation/prepare_iwslt14.py de-en.tgz data/iwslt14

The folder then loads with ``datasets.load_dataset("data/iwslt14")``; ``data/iwslt14/tokenizer`` has the subwords, learnt on
both sides together, and one dictionary per language.
"""

from __future__ import annotations

import argparse

from hf_sharp.translation.files import check_new_folder, new_folder
from hf_sharp.translation.iwslt14 import load_iwslt14
from hf_sharp.translation.pairs import TextSettings, learnt_tokenizer


def main() -> None:
    """Reads, prepares, writes."""
    parser = argparse.ArgumentParser(description="Prepare IWSLT'14 German-English as fairseq does.")
    parser.add_argument("archive", help="de-en.tgz, or a folder with what is in it")
    parser.add_argument("output_dir", help="a new or empty folder")
    parser.add_argument("--source", default="de", choices=["de", "en"], help="language to translate from (%(default)s)")
    parser.add_argument("--merges", type=int, default=10_000, help="of the subwords (%(default)s)")
    args = parser.parse_args()
    target = "en" if args.source == "de" else "de"
    settings = TextSettings(args.source, target, moses=False, merges=args.merges)
    check_new_folder(args.output_dir)
    data = load_iwslt14(args.archive, args.source, target, progress=True)
    tokenizer = learnt_tokenizer(data["train"], settings)
    with new_folder(args.output_dir) as new:
        for split, pairs in data.items():
            pairs.to_parquet(new / f"{split}.parquet")
        tokenizer.save_pretrained(new / "tokenizer")
    counts = ", ".join(f"{split} {len(pairs)}" for split, pairs in data.items())
    print(f"{args.output_dir}: {counts}; {len(tokenizer.source)} and {len(tokenizer.target)} symbols")


if __name__ == "__main__":
    main()

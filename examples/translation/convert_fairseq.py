"""A fairseq Transformer to a Hugging Face folder, and back.

    python examples/translation/convert_fairseq.py from checkpoint_best.pt dict.de.txt dict.en.txt model --merges code
    python examples/translation/convert_fairseq.py to model fairseq/checkpoint.pt

Checkpoints are read without running what may be hidden in them; dictionaries are written beside the new checkpoint.
"""

from __future__ import annotations

import argparse

from hf_sharp.translation.conversion import from_fairseq, to_fairseq


def main() -> None:
    """One of the two directions."""
    parser = argparse.ArgumentParser(description="Convert between fairseq and Hugging Face.")
    commands = parser.add_subparsers(dest="command", required=True)
    there = commands.add_parser("from", help="from fairseq")
    for name in ("checkpoint", "source_dictionary", "target_dictionary", "folder"):
        there.add_argument(name)
    there.add_argument("--merges", help="subword-nmt's file of merges")
    there.add_argument("--languages", nargs=2, default=["de", "en"], help="source and target (%(default)s)")
    there.add_argument("--tokenized", action="store_true", help="input text has blanks between tokens already")
    there.add_argument("--cased", action="store_true", help="do not lower-case")
    back = commands.add_parser("to", help="to fairseq")
    back.add_argument("folder")
    back.add_argument("checkpoint")
    args = parser.parse_args()
    if args.command == "to":
        to_fairseq(args.folder, args.checkpoint)
        return
    from_fairseq(
        args.checkpoint,
        args.source_dictionary,
        args.target_dictionary,
        args.folder,
        merges=args.merges,
        languages=(args.languages[0], args.languages[1]),
        moses=not args.tokenized,
        lower=not args.cased,
    )


if __name__ == "__main__":
    main()

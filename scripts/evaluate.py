"""Score a finished run, on any split.

  python scripts/evaluate.py --workdir runs/captioner_scenes
  python scripts/evaluate.py --workdir runs/captioner_scenes --split compositional --beam 5
  python scripts/evaluate.py --workdir runs/dual_encoder_scenes --evals unseen colour_and_shape --out scores.json

Prints each score with its 95 % interval, its floor (of captions the best constant one of the training set, of retrieval
chance, of classes the most frequent) and its ceiling where one is known (one reference against the others; what the
grammar of scenes allows), and a line that says how the numbers were made.
"""

import argparse
import json
from pathlib import Path

from mmgen_jax.command_line import check_out, leave, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument("--evals", nargs="*", help="which of the config's evaluations; default all")
    parser.add_argument("--split", help="score this split instead of the evaluations' own")
    parser.add_argument("--beam", type=int, help="captions: beam width instead of the config's")
    parser.add_argument(
        "--length-penalty", type=float, help="captions: rank by log-probability / length ** this"
    )
    parser.add_argument(
        "--java", action="store_true", help="METEOR and SPICE too, through pycocoevalcap and Java"
    )
    parser.add_argument("--out", type=Path, help="write the table there, as JSON")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    start_jax()
    check_out(args.out)
    from mmgen_jax.core.config import load_json
    from mmgen_jax.evaluate import evaluate

    chosen = {"task.decode.beam": args.beam, "task.decode.length_penalty": args.length_penalty}
    overrides = {key: value for key, value in chosen.items() if value is not None}
    if args.java:
        evals = load_json(args.workdir / "config.json").evals
        overrides.update(
            {f"evals.{name}.java": True for name, spec in evals.items() if spec.name == "captions"}
        )
    tables = evaluate(args.workdir, step=args.step, names=args.evals, split=args.split, overrides=overrides)
    if args.out:
        args.out.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

"""Look after a run's checkpoints.

  python scripts/checkpoint.py list    --workdir runs/captioner_scenes
  python scripts/checkpoint.py verify  --workdir runs/captioner_scenes                 # reads every byte; status 1 if one is bad
  python scripts/checkpoint.py convert --workdir runs/captioner_scenes --to safetensors --out captioner.safetensors
  python scripts/checkpoint.py convert --workdir runs/captioner_scenes --to evaluation  --out small/    # without the optimizer
  python scripts/checkpoint.py convert --workdir runs/captioner_scenes --to whole --step 950 --out copy/    # in today's format
  python scripts/checkpoint.py prune   --workdir runs/captioner_scenes --keep 1 --dry-run

What training finds damaged it sets aside as <step>.aside, and goes on from the newest step that is whole; nothing but
`prune --aside` deletes that. What stays is the config's: checkpoint.keep newest, every checkpoint.keep_every-th for ever,
and the best by the score that checkpoint.best names ("val/cider"; checkpoint.lower=True where less is better).
"""

import argparse
import time
from pathlib import Path

from mmgen_jax.command_line import leave, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = {}
    for name, what in (
        ("list", "the checkpoints, why each stays, and what else lies there"),
        ("verify", "compare every file and array with what was written"),
        ("convert", "write one in another form"),
        ("prune", "delete what need not stay"),
    ):
        add[name] = commands.add_parser(name, help=what, description=what)
        add[name].add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    for name, default in (("verify", "all"), ("convert", "the newest that is whole")):
        add[name].add_argument("--step", type=int, help=f"which checkpoint; default {default}")
    add["convert"].add_argument("--to", required=True, choices=("safetensors", "evaluation", "whole"))
    add["convert"].add_argument("--out", required=True, type=Path, help="the file or folder to write")
    add["convert"].add_argument(
        "--parameters", action="store_true", help="they themselves, and not their average"
    )
    add["prune"].add_argument("--keep", type=int, help="so many of the newest stay; default as in the config")
    add["prune"].add_argument("--keep-every", type=int, help="multiples of it stay; default as in the config")
    add["prune"].add_argument("--steps", type=int, nargs="+", default=(), help="delete these and no others")
    add["prune"].add_argument("--aside", action="store_true", help="also what is set aside or half-written")
    add["prune"].add_argument("--dry-run", action="store_true", help="only say what would go")
    return parser.parse_args()


def main(args: argparse.Namespace) -> int:
    start_jax()
    from mmgen_jax import checkpoints

    if args.command == "list":
        found, others = checkpoints.find(args.workdir)
        for item in found:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(item.written))
            note = "" if item.sealed else "  no fingerprints of its files: written by an earlier version"
            scores = "  ".join(f"{name} {value:.4g}" for name, value in item.scores.items())
            print(f"{item.step:>9}  {when}  {item.size / 1e6:9.1f} MB  {item.kept:<10}  {scores}{note}")
        print(*others, sep="\n", end="\n" if others else "")
    elif args.command == "verify":
        found = checkpoints.verify(args.workdir, args.step)
        for step, wrong in found.items():
            print(f"{step:>9}  {'; '.join(wrong) or 'as it was written'}")
        return int(any(found.values()) or not found)
    elif args.command == "convert":
        step = checkpoints.convert(args.workdir, args.to, args.out, args.step, average=not args.parameters)
        print(f"{args.out}: step {step}")
    else:
        names = checkpoints.prune(
            args.workdir,
            keep=args.keep,
            keep_every=args.keep_every,
            steps=args.steps,
            aside=args.aside,
            dry_run=args.dry_run,
        )
        print(f"{'would delete' if args.dry_run else 'deleted'}: {', '.join(names) or 'nothing'}")
    return 0


if __name__ == "__main__":
    arguments = parse()
    status = []
    failed = tell(lambda: status.append(main(arguments)))
    leave(failed or status[0])

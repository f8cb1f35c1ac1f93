"""Make one HTML page of a run, finished or not: where its time went, curves, scores, samples, and its config.

  python scripts/report.py --workdir runs/captioner_scenes
  python scripts/report.py --workdir runs/captioner_scenes --out captioner.html

The page is one file that needs nothing else: send it, or open it from anywhere. Every second of the run has one colour,
over all its starts in this workdir: training steps that count, waiting for data, saving, evaluations, compiling, starting,
work that a restart had to do again, and the time in which no process was running. The numbers are in time.jsonl.
"""

import argparse
from pathlib import Path

from mmgen_jax.command_line import check_out, leave, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--out", type=Path, help="the page; default report.html in the workdir")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    check_out(args.out)
    from mmgen_jax import report

    path = report.write(args.workdir, args.out)
    print(report.summary(report.read_starts(args.workdir)))
    print(path)


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

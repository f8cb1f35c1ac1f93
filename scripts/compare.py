"""Compare the values of one argument of a config: the config's baselines beside them, several seeds each, with intervals.

  python scripts/compare.py --config configs/gan_gaussians.py:steps=2000 --vary layout=ring,grid \
      --metric modes/high_quality --workdir runs/gaussians

Every value is trained with every seed, one run after another, each in a folder of its own (WORKDIR/layout=ring/seed_0).
Afterwards, and after each run, WORKDIR has results.md (the table), results.json (every number) and results.png (each run a
dot, each mean with its 95 % interval). Intervals are Student's t over the seeds; the difference to the first row is taken
run by run of the same seed, which leaves out what the seeds have in common.

The same command goes on where it stopped: finished runs count as they are, and one that was stopped goes on at its last
checkpoint. More seeds or values may be added; a config that has changed is refused, since one table compares like with like.
A run that fails is named and the others go on (status 1); its output is in log.txt in its folder, and the same command
tries it again. Ctrl-C saves first.

Baselines are a table in the config file, name -> arguments: BASELINES = {"image alone": "modalities=image"}. They are
always trained too, with the same seeds; differences are to the first of them, or else to the first value.
"""

import argparse
import signal
from pathlib import Path

from mmgen_jax.command_line import leave, start_jax, tell


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE[:args]", help="an experiment, as for scripts/train.py; "
                        "--config.KEY=VALUE changes one value in all runs")  # fmt: skip
    parser.add_argument("--vary", required=True, metavar="NAME=VALUE,VALUE", help="its argument to compare")
    parser.add_argument("--workdir", required=True, type=Path, help="gets the results and the runs")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on; default 3")
    parser.add_argument("--over", default="", metavar="NAME", help="an argument that counts with the seeds: --over fold "
                        "--seeds 10 holds another tenth out in each run")  # fmt: skip
    parser.add_argument(
        "--metric", nargs="+", default=(), help="of metrics.jsonl, such as test/top1; default checkpoint.best"
    )
    args, changes = parser.parse_known_args()
    for change in changes:
        if not (change.startswith("--config.") and "=" in change):
            parser.error(
                f"unknown argument {change}; a value of the config is changed with --config.KEY=VALUE"
            )
    return args, changes


def main(args: argparse.Namespace, changes: list[str]) -> int:
    start_jax()
    from mmgen_jax.compare import compare

    # A scheduler's end is as good as Ctrl-C: the run saves.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results = compare(
        args.config,
        args.vary,
        args.workdir,
        seeds=args.seeds,
        over=args.over,
        metrics=args.metric,
        changes=changes,
    )
    return int(any("failed" in run for row in results["rows"] for run in row["runs"]))


if __name__ == "__main__":
    arguments = parse()
    status: list[int] = []
    bad = tell(lambda: status.append(main(*arguments)))
    leave(bad or status[0])

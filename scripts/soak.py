"""Break small trainings, one after another, and see that each ends as if nothing had happened.

  python scripts/soak.py --faults 1000 --seed 0 --workdir /tmp/soak

--faults N       so many in all; the same command goes on where an earlier one stopped
--seed S         what is broken, when and how follows from it and the fault's number
--workdir DIR    gets record.jsonl, a line a fault, and what the runs need; best on a disk with 1 GB free
--kind TEXT ...  only the kinds of faults whose names have this in them: --kind "kill -9" image
--list           the kinds

Trained are the tiny captioner, dual encoder and DCGAN of configs/, eight steps, saved at every second. Faults are
kill -9 in every phase, storms of signals, damaged checkpoints, full and read-only disks, broken images, loader threads
that die, and a peer that is killed inside a collective. The run is then started again as a user would, and its end is
compared with that of a run which nothing broke: state and metrics bit for bit, and no more steps trained again than
since the last checkpoint. Mounting a full or read-only disk needs root; otherwise the failing call is imitated.

Status 1 if a fault was not detected, not recovered from, or left a difference.
"""

import argparse
import json
import os
import runpy
import sys
from pathlib import Path

# One device as on a laptop, and compiled programs kept for the children: starting is most of what a fault costs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

CONFIGS = {"captioner": "captioner_scenes", "dual encoder": "dual_encoder_scenes", "dcgan": "dcgan_scenes"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--kind", nargs="+", default=())
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if not args.list and not args.workdir:
        parser.error("--workdir is missing")
    return args


def main(args: argparse.Namespace) -> int:
    from mmgen_jax import faults
    from mmgen_jax.command_line import keep_compiled, start_jax

    if args.list:
        print(*faults.KINDS, sep="\n")
        return 0
    start_jax()
    root = args.workdir.resolve()
    root.mkdir(parents=True, exist_ok=True)
    keep_compiled(root)
    kinds = tuple(kind for kind in faults.KINDS if any(text in kind for text in args.kind))
    if args.kind and not kinds:
        raise ValueError(f"No kind of fault has {' or '.join(args.kind)} in its name; --list shows them.")
    folder = Path(__file__).resolve().parents[1] / "configs"
    configs = {
        task: runpy.run_path(str(folder / f"{name}.py"))["get_config"]("tiny")
        for task, name in CONFIGS.items()
    }
    driver = faults.Driver(configs, root, args.seed)
    path = root / "record.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [faults.Record(**json.loads(line)) for line in lines]
    with path.open("a", encoding="utf-8") as file:
        for number in range(len(records), args.faults):
            record = driver.run(number, kinds)
            records.append(record)
            file.write(json.dumps(record._asdict()) + "\n")
            file.flush()
            end = "passed" if record.passed else f"FAILED: {record.problem}"
            print(f"{number + 1}/{args.faults}  {record.task}, {record.kind} ({record.what}): {end}  {record.seconds:.1f} s",
                  flush=True)  # fmt: skip
    return show(faults.table(records), [record for record in records if not record.passed])


def show(rows: list[tuple], failed: list) -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("fault")
    for name in ("count", "detected", "recovered", "bit-equal", "steps again", "since saved"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=110).print(table)
    for record in failed:
        print(
            f"FAILED {record.number}: {record.task}, {record.kind} ({record.what}): {record.problem}",
            file=sys.stderr,
        )
    return int(bool(failed))


if __name__ == "__main__":
    from mmgen_jax.command_line import leave, tell

    arguments = parse()
    status: list[int] = []
    bad = tell(lambda: status.append(main(arguments)))
    leave(bad or status[0])

"""Turn any data source, or a collection larger than one machine, into a sharded ArrayRecord data set, which pods read quickly
in any order. The result is a TFDS data set that needs no TensorFlow, neither to write nor to read.
"""

import argparse
import ast
import io
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from mmgen_jax.data import collection, image_transforms, sources, tfds
from mmgen_jax.data.quarantine import BrokenExample, Quarantine, TooManyBroken

SHARD_BYTES = 2**28
BLOCK = 256

EXAMPLES = """\
examples:
  # A Parquet file; run it once for each split, they join one data set.
  python scripts/prepare_data.py --source parquet --arg path=data.parquet --arg split=train \\
      --split train --out prepared --name my_photos
  python scripts/prepare_data.py --source parquet --arg path=data.parquet --arg split=dev \\
      --split val --out prepared --name my_photos

  # COCO with Karpathy's splits, in 64 files.
  python scripts/prepare_data.py --source karpathy --arg path=dataset_coco.json --arg images=coco \\
      --arg split=train --split train --out prepared --name coco_karpathy --shards 64

  # Some of the endless drawn scenes.
  python scripts/prepare_data.py --source scenes --arg length=10000 --out prepared --name scenes_10k

Then a config reads it with
  source = {"name": "tfds:my_photos", "data_dir": "prepared", "split": "train"}

Images of a source keep their bytes and their order; images that come as arrays are written as PNG. Every image is
decoded once: broken ones are left out and listed in OUT/NAME-SPLIT.quarantine.jsonl. Nothing appears under OUT/NAME
before a split is complete.

Collections larger than one machine go through Apache Beam (pip install "mmgen_jax[beam]"): lists with an image's path or
address and its caption in each row, or WebDataset's tars.
  # On this machine:
  python scripts/prepare_data.py --list 'web/part-{00000..00127}.parquet' --image URL --caption TEXT \\
      --min-size 200 --max-aspect 3 --min-words 3 --resize 256 --out prepared --name web

  # The same on Google Cloud (apache-beam[gcp]); for Flink or Spark --beam=--runner=FlinkRunner and so on.
  python scripts/prepare_data.py --tar 'gs://BUCKET/pairs/*.tar' --out gs://BUCKET/prepared --name pairs \\
      --beam=--runner=DataflowRunner --beam=--project=PROJECT --beam=--region=REGION \\
      --beam=--temp_location=gs://BUCKET/tmp --beam=--sdk_container_image=IMAGE --beam=--max_num_workers=200

Images with the same pixels are kept once, the first. What was dropped and why is counted in OUT/NAME-SPLIT.counts.json.
The same command again goes on after a break: parts and shards that are finished are kept.
"""


RULES = {
    "resize": "pixels of the shorter side, to which larger images are made; 0: none",
    "quality": "of the JPEG that a resized image becomes",
    "min_size": "pixels that the shorter side has at least",
    "max_aspect": "the longer side over the shorter one, at most",
    "min_words": "of a caption, at least",
    "max_words": "of a caption, at most",
    "max_bytes": "of an image file",
    "timeout": "seconds until a download is given up",
}


def main(argv: list[str] | None = None) -> None:
    """Read the command line, write the split, and say how to use it."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--source", help=f"one of: {', '.join(sources.SOURCES)} (tfds:NAME)")
    start.add_argument(
        "--list",
        action="append",
        default=[],
        metavar="PATTERN",
        help="Parquet, CSV or TSV files (.gz too) with a row an image; repeat it for more",
    )
    start.add_argument(
        "--tar", action="append", default=[], metavar="PATTERN", help="WebDataset's tars; repeat it for more"
    )
    parser.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an argument of the source, as in a config's `source`; repeat it for more",
    )
    parser.add_argument("--split", default="train", help="name of the split to write (default: train)")
    parser.add_argument("--out", required=True, help="folder for data sets, the later data_dir")
    parser.add_argument("--name", required=True, help="name of the data set: small letters, digits, _")
    parser.add_argument("--shards", type=int, help="number of files (default: about 256 MiB each)")
    parser.add_argument(
        "--max-broken",
        type=float,
        default=0.01,
        help="largest share of broken images of a source (default: 0.01)",
    )
    beam = parser.add_argument_group("of --list and --tar")
    beam.add_argument(
        "--image", default="image", metavar="COLUMN", help="of paths or addresses (default: image)"
    )
    beam.add_argument(
        "--caption", default="caption", metavar="COLUMN", help="or .json field (default: caption)"
    )
    beam.add_argument(
        "--rows", type=int, default=1000, help="of a list that a worker takes at once (default: 1000)"
    )
    rules = collection.Rules()
    for name, what in RULES.items():
        default = getattr(rules, name)
        flag = "--" + name.replace("_", "-")
        beam.add_argument(flag, type=type(default), default=default, help=f"{what} (default: {default})")
    beam.add_argument(
        "--beam", action="append", default=[], metavar="OPTION", help="of Beam, such as --runner=..."
    )
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    try:
        if args.source:
            source = sources.make({"name": args.source, **dict(map(_argument, args.arg))})
            more = {"shards": args.shards, "max_broken": args.max_broken, "console": console}
            count, broken = prepare(source, Path(args.out), args.name, args.split, **more)
            console.print(f"Wrote {count} examples; left out {broken} broken ones. For a config:")
        else:
            inputs = collection.Inputs(tuple(args.list), tuple(args.tar), args.image, args.caption, args.rows)
            rules = collection.Rules(**{name: getattr(args, name) for name in RULES})
            counts = collection.prepare(
                inputs, rules, args.out, args.name, args.split, shards=args.shards, options=args.beam
            )
            console.print(f"{collection.tell(counts)} For a config:")
    except (ValueError, OSError, ImportError, TooManyBroken, collection.CollectionError) as error:
        hint = " (here --max-broken)" if isinstance(error, TooManyBroken) else ""
        sys.exit(f"prepare_data: {error}{hint}")
    spec = {"name": f"tfds:{args.name}", "data_dir": args.out, "split": args.split}
    print(f"source = {json.dumps(spec)}")


def prepare(
    source: sources.Source,
    out: Path,
    name: str,
    split: str,
    *,
    shards: int | None = None,
    max_broken: float = 0.01,
    console: Console | None = None,
) -> tuple[int, int]:
    """Write `source` as one split of the data set `name` below the folder `out`.

    Returns:
      The number of examples written, and of broken ones that were left out.

    Raises:
      ValueError: a bad name, a split that exists, an empty source.
      TooManyBroken: more than `max_broken` of the images are broken; nothing is left behind but the list.
    """
    tfds.check_names(name, split)
    if not len(source):
        raise ValueError("The source is empty.")
    if shards is not None and not 0 < shards <= len(source):
        raise ValueError(f"--shards must lie between 1 and the number of examples, {len(source)}.")
    target = out / name / tfds.VERSION
    if split in _splits(target):
        raise ValueError(
            f'{target} has a split "{split}" already. Delete the folder, or choose another name.'
        )
    out.mkdir(parents=True, exist_ok=True)
    listing = out / f"{name}-{split}.quarantine.jsonl"
    listing.unlink(missing_ok=True)
    quarantine = Quarantine(listing, len(source), source=split, max_share=max_broken)
    # The work is done beside the target and moved there at the end, so that half a split never looks whole.
    with tempfile.TemporaryDirectory(dir=out, prefix=".prepare_data-") as folder:
        _write(source, Path(folder), name, split, shards, quarantine, console)
        _check(Path(folder), split, len(source) - quarantine.count)
        _publish(Path(folder), target)
    return len(source) - quarantine.count, quarantine.count


def _argument(text: str) -> tuple[str, Any]:
    """KEY=VALUE, where VALUE is a Python literal or else a string."""
    key, sign, value = text.partition("=")
    if not sign:
        raise ValueError(f"--arg {text}: write KEY=VALUE.")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _write(
    source: sources.Source,
    folder: Path,
    name: str,
    split: str,
    shards: int | None,
    quarantine: Quarantine,
    console: Console | None,
) -> None:
    """Write the shards and their description into `folder`."""
    from tensorflow_datasets import core

    info = tfds.info(folder, name)
    check = image_transforms.decode()

    def load(index: int) -> dict | BrokenExample:
        try:
            example = source[index]
            check(example, np.random.default_rng(0))
        except BrokenExample as error:
            return error
        return {
            "image": _encoded(example["image"]),
            "captions": example["captions"],
            "name": example.get("name", str(index)),
        }

    writer = None
    with (
        ThreadPoolExecutor() as pool,
        Progress(console=console, disable=console is None, transient=True) as progress,
    ):
        task = progress.add_task(f"{name} {split}", total=len(source))
        for start in range(0, len(source), BLOCK):
            block = range(start, min(start + BLOCK, len(source)))
            loaded = list(pool.map(load, block))
            for index, example in zip(block, loaded, strict=True):
                if isinstance(example, BrokenExample):
                    quarantine.add(index, _name(source, index), str(example))
            good = [example for example in loaded if not isinstance(example, BrokenExample)]
            if writer is None and good:
                if shards is None:
                    average = sum(len(example["image"]) for example in good) / len(good)
                    shards = max(1, round(average * len(source) / SHARD_BYTES))
                writer = core.SequentialWriter(
                    info, max_examples_per_shard=-(-len(source) // shards), file_format="array_record"
                )
                writer.initialize_splits([split])
            if good:
                writer.add_examples({split: good})
            progress.update(task, advance=len(block))
    if writer is None:
        raise TooManyBroken(quarantine.summary())
    writer.close_all()


def _name(source: sources.Source, index: int) -> str:
    """What messages call an example that cannot be read."""
    return source.name(index) if hasattr(source, "name") else str(index)


def _encoded(image: bytes | np.ndarray) -> bytes:
    """Bytes as they are; an array as PNG, which loses nothing."""
    if isinstance(image, bytes):
        return image
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _check(folder: Path, split: str, count: int) -> None:
    """Read the new files once, as a user would."""
    from tensorflow_datasets import builder_from_directory, decode

    data = builder_from_directory(str(folder)).as_data_source(
        split=split, decoders={"image": decode.SkipDecoding()}
    )
    if len(data) != count or not all(data[i]["image"] for i in {0, count - 1}):
        raise OSError(f"The files hold {len(data)} examples where {count} were written. Is the disk full?")


def _splits(target: Path) -> list[str]:
    """The splits that a data set has already. TFDS takes a folder for one when features.json is there."""
    if not (target / "features.json").exists():
        return []
    info = target / "dataset_info.json"
    return [split["name"] for split in json.loads(info.read_text(encoding="utf-8"))["splits"]]


def _publish(folder: Path, target: Path) -> None:
    """Move a finished split to its place, the descriptions last: without them TFDS sees no shards."""
    new = folder / "dataset_info.json"
    old = target / "dataset_info.json"
    if _splits(target):
        merged = json.loads(old.read_text(encoding="utf-8"))
        merged["splits"] += json.loads(new.read_text(encoding="utf-8"))["splits"]
        new.write_text(json.dumps(merged, indent=2), encoding="utf-8")
    target.mkdir(parents=True, exist_ok=True)
    described = [new, folder / "features.json"]
    for file in sorted(set(folder.iterdir()) - set(described)) + described:
        os.replace(file, target / file.name)


if __name__ == "__main__":
    main()

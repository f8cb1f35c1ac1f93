"""Time a model against PyTorch peers that compute the same, and the training loop against its bare step.

python scripts/benchmark.py captioner --help
python scripts/benchmark.py dual_encoder --help
python scripts/benchmark.py text_to_image --help
python scripts/benchmark.py question_answering --help
python scripts/benchmark.py video --help
"""

import argparse
import json
import sys
from collections.abc import Sequence

from benchmarks import captioner, dual_encoder, harness, question_answering, text_to_image, video

SUITES = {
    "captioner": captioner,
    "dual_encoder": dual_encoder,
    "text_to_image": text_to_image,
    "question_answering": question_answering,
    "video": video,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line and run a model's benchmark."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["peer"]:  # how the benchmark starts itself again, no part of the command line
        spec = json.loads(argv[1])
        return harness.serve(SUITES[spec["model"]], spec)
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, suite in SUITES.items():
        harness.add_command(models, name, suite)
    args = parser.parse_args(argv)
    args.argv = argv
    harness.run(SUITES[args.model], args)


if __name__ == "__main__":
    main()

"""Answer questions about an image, or a video, with a finished run.

  python scripts/answer.py --workdir runs/question_answering_scenes image.png "what colour is the circle?"
  python scripts/answer.py --workdir runs/question_answering_scenes --figure looked.png image.png "how many stars are there?"
  python scripts/answer.py --workdir runs/question_answering_scenes --blind "what colour is the circle?"
  python scripts/answer.py --workdir runs/question_answering_clips clip.gif "what moves first?"

One JSON object a question on the terminal: {"image", "question", "answers": [{"answer", "probability"}, ...]}, best first;
with --blind also {"without": ["image"]}: what the model guesses when it is told that there is no picture. A run that writes its
answers gives those of a beam. For a run that reads videos it is "video": a GIF, mp4 and the like (with the extra "video"), a
folder of numbered frames, or a sheet of frames.
"""

import argparse
import os
from pathlib import Path

from mmgen_jax.command_line import leave, rows_and_columns, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s --workdir WORKDIR [options] IMAGE QUESTION [QUESTION ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="IMAGE QUESTION",
        help="an image or a video, then questions; with --blind questions only",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument(
        "--sheet",
        type=rows_and_columns,
        metavar="ROWSxCOLUMNS",
        help="the picture holds a video's frames, row by row",
    )
    parser.add_argument("--n-best", type=int, default=3, help="how many answers a question (default 3)")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw where it looked")
    parser.add_argument("--blind", action="store_true", help="ask without an image")
    args = parser.parse_args()
    args.image = None if args.blind else Path(args.words.pop(0))
    # Not pathlib, which fails for a long question.
    files = [] if args.blind else [word for word in args.words if os.path.isfile(word)]
    if files:
        parser.error(f"{files[0]} is a file, not a question: ask about one image or video at a time.")
    if not args.words:
        parser.error(
            f'a question is missing: IMAGE QUESTION, such as {args.image} "what colour is the circle?"'
        )
    return args


def main(args: argparse.Namespace) -> None:
    start_jax()
    from mmgen_jax.answer import answer_questions

    answer_questions(
        args.workdir,
        args.image,
        args.words,
        step=args.step,
        sheet=args.sheet,
        n_best=args.n_best,
        figure=args.figure,
    )


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

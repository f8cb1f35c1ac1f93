"""Draw pictures from captions with a finished text-to-image run.

  python scripts/generate.py --workdir runs/dcgan_scenes --out drawn/ "a small red circle above a large blue square" --n 8
  python scripts/generate.py --workdir runs/dcgan_scenes --out drawn/ --captions captions.txt --n 4 --truncation 0.8
  python scripts/generate.py --workdir runs/dcgan_scenes --out drawn/ --interpolate "a red circle" "a blue square"
  python scripts/generate.py --workdir runs/dcgan_scenes --out drawn/ --n 32

--out gets a PNG a sample, samples.jsonl that says what each shows ({"image", "caption", "sample", ...}), and a contact sheet;
for models that attend to words, also pictures of the parts of an image that looked at each word. Without a caption a run draws
captions of its own evaluation data; a run that reads no text is asked for samples only.

Sample k has the same noise under every caption, whatever --n and --batch-size are: down a column of the contact sheet only
the words change, and with more samples the first ones stay. --truncation T cuts the normal distribution of the noise off at 2
standard deviations (values beyond are drawn again) and scales it by T (Brock et al., 2019): a lower one gives better pictures and
fewer different ones. Without it the noise is that of training, neither cut nor scaled. Models that draw around the sentence too
(conditioning augmentation) take its mean here, so that the noise is all that differs between samples.
"""

import argparse
from pathlib import Path

from mmgen_jax.command_line import check_out, leave, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("captions", nargs="*", metavar="CAPTION", help="what to draw, in quotation marks")
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder for the pictures")
    parser.add_argument(
        "--captions", dest="file", type=Path, metavar="FILE", help="captions from a file, one a line"
    )
    parser.add_argument("--n", type=int, default=8, help="samples a caption (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--truncation", type=float, metavar="T", help="noise within 2 standard deviations, scaled by T"
    )
    parser.add_argument(
        "--interpolate",
        action="store_true",
        help="go from the first of two captions to the second; adds an animation",
    )
    parser.add_argument("--frames", type=int, default=9, help="pictures on that way (default 9)")
    parser.add_argument(
        "--no-ema", action="store_true", help="the parameters themselves instead of their average"
    )
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures at once (default 64)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    start_jax()
    check_out(args.out / "samples.jsonl")
    from mmgen_jax import generate

    captions = [*args.captions, *(generate.read_captions(args.file) if args.file else ())]
    generate.generate(
        args.workdir,
        captions,
        out=args.out,
        n=args.n,
        seed=args.seed,
        truncation=args.truncation,
        frames=args.frames if args.interpolate else None,
        average=not args.no_ema,
        step=args.step,
        batch_size=args.batch_size,
    )


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

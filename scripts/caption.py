"""Caption images, or videos, with a finished run.

  python scripts/caption.py --workdir runs/captioner_scenes photo.jpg folder_of_images/
  python scripts/caption.py --workdir runs/captioner_scenes --beam 5 --n-best 3 --figures attention/ photo.jpg
  python scripts/caption.py --workdir runs/captioner_scenes --temperature 0.8 --top-p 0.9 --n-best 5 photo.jpg
  python scripts/caption.py --workdir runs/captioner_clips clip.gif clip.mp4 folder_of_frames/
  python scripts/caption.py --workdir runs/captioner_clips --sheet 3x4 frames.png

One JSON object an image, on the terminal or in --out: {"image": path, "captions": [{"caption", "log_prob", "finished"},
...]}, best
first; log_prob is natural, of the whole caption with its end. An image that cannot be read gives {"image", "error"}. For a run
that captions videos it is "video": GIFs, mp4 and the like (with the extra "video"), folders of numbered frames, sheets of frames.
"""

import argparse
from pathlib import Path

from mmgen_jax.command_line import check_out, leave, rows_and_columns, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="images or videos, and folders of them"
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument(
        "--sheet",
        type=rows_and_columns,
        metavar="ROWSxCOLUMNS",
        help="each picture holds a video's frames, row by row",
    )
    parser.add_argument("--out", type=Path, help="write the JSON lines there instead of to the terminal")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw where it looked for each word")
    parser.add_argument("--beam", type=int, help="beam width; 1 is greedy")
    parser.add_argument("--n-best", type=int, help="how many captions an image: of the beam, or drawn")
    parser.add_argument("--length-penalty", type=float, help="rank by log-probability / length ** this")
    parser.add_argument("--temperature", type=float, help="draw words instead of searching")
    parser.add_argument("--top-k", type=int, help="draw from the k likeliest words")
    parser.add_argument(
        "--top-p", type=float, help="draw from the likeliest words that together have this probability"
    )
    parser.add_argument("--max-len", type=int, help="most tokens of a caption")
    parser.add_argument("--batch-size", type=int, default=32, help="images at once (default 32)")
    parser.add_argument("--seed", type=int, help="of the drawn words")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    start_jax()
    check_out(args.out)
    from mmgen_jax.caption import caption_files

    caption_files(
        args.workdir,
        args.paths,
        step=args.step,
        sheet=args.sheet,
        out=args.out,
        figures=args.figures,
        batch_size=args.batch_size,
        seed=args.seed,
        decode={
            "beam": args.beam,
            "n_best": args.n_best,
            "length_penalty": args.length_penalty,
            "temperature": args.temperature,
            "top_k": args.top_k,
            "top_p": args.top_p,
            "max_len": args.max_len,
        },
    )


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

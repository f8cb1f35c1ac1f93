"""Write a finished run as a folder that Hugging Face transformers opens.

  python scripts/export.py --workdir runs/clip --out exported
  python scripts/export.py --workdir runs/captioner --out exported --part image

The averaged parameters are written where the run kept them. Says which class of transformers the folder is for.
"""

import argparse
from pathlib import Path

from mmgen_jax.command_line import leave, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    parser.add_argument("--part", default="all", choices=("all", "image", "text"), help="or one tower alone")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    start_jax()
    from mmgen_jax.evaluate import load
    from mmgen_jax.pretrained.write import write

    experiment, params, variables, step = load(args.workdir, step=args.step)
    tokenizer = experiment.pipeline.tokenizer
    name = write(
        args.out,
        experiment.task.model,
        params["model"],
        variables["model"],
        part=args.part,
        tokenizer=tokenizer,
    )
    print(f"{args.out}: step {step} as a {name}; open it with transformers.{name}.from_pretrained.")
    if args.part != "image" and not hasattr(tokenizer, "write_hugging_face"):
        print("Texts: transformers has no tokenizer of this kind; encode them with the run's tokenizer.json.")


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

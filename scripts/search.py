"""Search a folder of images with a finished dual encoder, by words or by a picture.

  python scripts/search.py --workdir runs/dual_encoder_scenes index photos/             # embeds every image below photos/, once
  python scripts/search.py --workdir runs/dual_encoder_scenes query "a red square above a circle"
  python scripts/search.py --workdir runs/dual_encoder_scenes query photos/a.png "a blue star" --k 5 --picture found.png

`index` keeps the embeddings in <workdir>/index/<folder>.npz (or --out). Run it again when files have come or gone: only new and
changed ones are embedded. Files that cannot be read are listed and left out.

`query` takes any number of texts and images, and answers with rank, score (the cosine, -1 to 1) and path; --json gives one line
an answer: {"query", "rank", "score", "path"}. An index belongs to the weights that made it: after more training, index again,
or go back to them with --step. FAISS (pip install "mmgen_jax[search]") does the search where it is installed, with the same
answers.
"""

import argparse
from pathlib import Path

from mmgen_jax.command_line import check_out, leave, start_jax, tell


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run made by scripts/train.py")
    parser.add_argument("--step", type=int, help="which checkpoint; default the newest")
    commands = parser.add_subparsers(dest="command", required=True)
    index = commands.add_parser("index", help="embed a folder of images and keep the index in a file")
    index.add_argument("folder", type=Path, metavar="FOLDER", help="images below it are found at any depth")
    index.add_argument("--out", type=Path, help="the index file; default <workdir>/index/<folder>.npz")
    index.add_argument("--batch-size", type=int, default=64, help="images at once (default 64)")
    query = commands.add_parser("query", help="the nearest images to texts and images")
    query.add_argument("queries", nargs="+", metavar="QUERY", help="a text, or the path of an image")
    query.add_argument("--k", type=int, default=10, help="answers a query (default 10)")
    query.add_argument("--index", type=Path, help="the index file; default the only one in <workdir>/index")
    query.add_argument("--picture", type=Path, metavar="PNG", help="draw a contact sheet of the answers")
    query.add_argument("--json", action="store_true", help="JSON lines instead of a table")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    start_jax()
    from mmgen_jax import search

    if args.command == "index":
        check_out(args.out)
        search.index_folder(
            args.workdir, args.folder, out=args.out, batch_size=args.batch_size, step=args.step
        )
        return
    check_out(args.picture, "--picture")
    hits = search.search(
        args.workdir, args.queries, index=args.index, k=args.k, picture=args.picture, step=args.step
    )
    search.print_hits(args.queries, hits, lines=args.json)


if __name__ == "__main__":
    arguments = parse()
    leave(tell(lambda: main(arguments)))

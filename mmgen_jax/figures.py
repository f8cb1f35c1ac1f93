"""Pictures: where a model looked for each word in an image or a clip, contact sheets, samples, points, curves, intervals."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FRAME = (0.1, 0.65, 0.2)  # of a marked image
CELL = (
    64,
    128,
)  # pixels of a sample's longer side in a grid: smaller ones are enlarged to at least, larger ones shrunk to at most
TEXT = 12, 200  # height of the letters beside a grid, and the width of the column in which they stand


def attention(
    path: Path,
    images: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]],
    weights: Sequence[np.ndarray],
    titles: Sequence[str] | None = None,
    columns: int = 12,
) -> Path:
    """Write a PNG with a row (or more, for long captions) an image: the image, then one map a word over the dimmed image.

    Args:
      path: the file to write.
      images: uint8 [H, W, 3].
      captions: words (or pieces), as many as there are maps.
      weights: float [T, P], the positions of a grid of the image's proportions, row by row; rows behind the words are left out.
      titles: a line above each image; default its caption.
      columns: maps in a row.
    """
    # The object interface needs no display and leaves the user's pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [max(1, -(-len(words) // columns)) for words in captions]
    width = min(columns, max((len(words) for words in captions), default=1)) + 1.4
    figure = Figure(figsize=(1.15 * width, 1.45 * sum(lines) + 0.2), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(images), 1, height_ratios=lines, squeeze=False)[:, 0]
    titles = titles or [" ".join(words) for words in captions]
    for row, image, words, maps, title, count in zip(
        rows, images, captions, weights, titles, lines, strict=True
    ):
        title = textwrap.fill(title, int(14 * width))  # so many letters fit
        row.suptitle(title, fontsize=9, x=0.01, ha="left", fontweight="bold")
        ratios = [1.4] + [1] * int(width - 1.4)
        axes = row.subplots(count, len(ratios), width_ratios=ratios, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        axes[0, 0].imshow(image)
        for i, word in enumerate(words):
            axis = axes[i // columns, 1 + i % columns]
            axis.imshow(_lit(image, maps[i], float(maps[i].max())))
            axis.set_title(word, fontsize=8, pad=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def film(
    path: Path, frames: np.ndarray, words: Sequence[str], weights: Sequence[np.ndarray], title: str
) -> Path:
    """Write a PNG with a clip's frames in a row, and below them a row a word: its frames, bright where the model looked for it.

    Args:
      path: the file to write.
      frames: uint8 [F, H, W, 3].
      words: words (or pieces), as many as there are maps.
      weights: float [T, F, S], S positions of a grid of a frame's proportions; rows behind the words are left out.
      title: beside the first row.
    """
    rows = [list(frames)]
    for _, maps in zip(words, weights, strict=False):
        rows.append([_lit(frame, one, float(maps.max())) for frame, one in zip(frames, maps, strict=True)])
    return sample_grid(path, rows, [title, *words])


def contact_sheet(
    path: Path,
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]],
    marks: Sequence[Sequence[bool]] | None = None,
    lines: int = 5,
) -> Path:
    """Write a PNG with a line of images under each title: what was asked, and what was found.

    Args:
      path: the file to write.
      rows: images, uint8 [H, W, 3] of any size; rows may differ in length.
      titles: one a row.
      captions: a text under each image; long ones are wrapped.
      marks: which images get a frame, such as the right answers; None frames none.
      lines: of a text, at most; the rest is cut.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max((len(row) for row in rows), default=1) or 1
    wrapped = [[_wrap(text, 20, lines) for text in row] for row in captions]
    counts = [max((text.count("\n") + 1 if text else 0 for text in row), default=0) for row in wrapped]
    heights = [1.4 + 0.45 + 0.14 * count for count in counts]
    figure = Figure(figsize=(1.4 * max(columns, 3) + 0.2, sum(heights) + 0.1), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0] if rows else ()
    marks = marks or [[False] * len(row) for row in rows]
    for part, images, title, texts, marked in zip(parts, rows, titles, wrapped, marks, strict=True):
        part.suptitle(_plain(title), fontsize=9, x=0.01, ha="left", fontweight="bold")
        axes = part.subplots(1, max(columns, 3), squeeze=False)[0]
        for axis in axes[len(images) :]:
            axis.axis("off")
        for axis, image, text, mark in zip(axes, images, texts, marked, strict=False):
            axis.imshow(image)
            axis.set(xticks=[], yticks=[], anchor="N")
            axis.set_xlabel(text, fontsize=7, labelpad=4)
            axis.spines[:].set(color=FRAME, linewidth=4, visible=bool(mark))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def sample_grid(
    path: Path, rows: Sequence[Sequence[np.ndarray]], captions: Sequence[str] | None = None
) -> Path:
    """Write a PNG with a row of samples beside each caption; grids of the same captions and images have the same size.

    Args:
      path: the file to write.
      rows: images, uint8 [H, W, 3], all of one size.
      captions: one a row; long ones are wrapped, and cut. None leaves the column out.
    """
    height, width = rows[0][0].shape[:2]
    low, high = CELL
    longer = max(height, width)
    scale = -(-low // longer) if longer < low else min(1.0, high / longer)
    cell = max(round(width * scale), 1), max(round(height * scale), 1)
    # Small samples by whole pixels, that each can be seen as it is.
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    letter, column = TEXT if captions is not None else (0, 0)
    gap = 3
    size = (
        column + max(map(len, rows)) * (cell[0] + gap) + gap,
        len(rows) * (max(cell[1], 2 * letter + 6) + gap) + gap,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = _font(letter) if letter else None
    step = (size[1] - gap) // len(rows)
    for i, images in enumerate(rows):
        top = gap + i * step
        for k, image in enumerate(images):
            picture = Image.fromarray(image).resize(cell, how)
            sheet.paste(picture, (column + gap + k * (cell[0] + gap), top))
        if font is not None:
            most = max((step - gap) // (letter + 3), 1)
            for letters in range(60, 3, -1):  # the most that fit: letters differ in width
                lines = textwrap.wrap(captions[i], letters, max_lines=most, placeholder=" ...")
                if max(map(font.getlength, lines), default=0) <= column - 2 * gap:
                    break
            draw.multiline_text((gap, top), "\n".join(lines), fill="black", font=font, spacing=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def animation(path: Path, pictures: Sequence[Path], titles: Sequence[str], seconds: float = 0.4) -> Path:
    """Write a GIF of pictures, such as those of a training's evaluations; the last stays longest.

    Args:
      path: the file to write.
      pictures: image files; what differs in size from the last is resized to it.
      titles: a line above each.
      seconds: that each is shown.
    """
    frames: list[Image.Image] = []
    letter, _ = TEXT
    for picture, title in zip(reversed(pictures), reversed(titles), strict=True):
        with Image.open(picture) as image:
            image = image.convert("RGB")
        if frames:
            image = image.resize((frames[0].width, frames[0].height - 2 * letter))
        frame = Image.new("RGB", (image.width, image.height + 2 * letter), "white")
        frame.paste(image, (0, 2 * letter))
        ImageDraw.Draw(frame).text((5, letter // 2), title, fill="black", font=_font(letter))
        # Pillow's usual palette drops rare colours, such as those of small objects.
        palette = frame.quantize(256, Image.Quantize.FASTOCTREE)
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    first, *others = reversed(frames)
    times = [round(1000 * seconds)] * len(others) + [round(1000 * max(2.0, seconds))]
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=times if others else times[0], loop=0)
    return path


def scatter(
    path: Path, points: np.ndarray, modes: np.ndarray, std: float, found: np.ndarray | None = None
) -> Path:
    """Write a PNG of points in the plane, over circles of three standard deviations around the modes of their distribution.

    Args:
      path: the file to write.
      points: float [n, 2].
      modes: float [M, 2].
      std: of each mode.
      found: bool [M], the modes that count as found; the others are drawn in red.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    found = np.ones(len(modes), bool) if found is None else found
    size = np.full(len(modes), 6 * std)
    colours = np.where(found, "tab:green", "tab:red")
    axis.add_collection(
        EllipseCollection(
            size,
            size,
            0 * size,
            units="xy",
            offsets=modes,
            offset_transform=axis.transData,
            facecolor="none",
            edgecolor=colours,
            linewidth=1.5,
            zorder=3,
        )
    )
    axis.scatter(*points.T, s=4, alpha=min(1.0, max(0.3, 500 / len(points))), linewidths=0, color="tab:blue")
    low, high = modes.min(axis=0), modes.max(axis=0)
    margin = 6 * std + 0.15 * float((high - low).max())
    axis.set(
        xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin), aspect="equal"
    )
    away = len(points) - np.all((points >= low - margin) & (points <= high + margin), axis=1).sum()
    axis.set_title(
        f"{found.sum()} of {len(modes)} modes, {len(points):,} points"
        + (f", {away:,} of them far away" if away else "")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def scaling(path: Path, plans: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write a PNG of what a chip holds, what it sends and how long a step takes, against the number of chips.

    Args:
      path: the file to write.
      plans: a line each, {"weak": [...]}: plans as `Plan.to_json` gives them; one that does not fit has a cross.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    held, sent, seconds = figure.subplots(1, 3)
    for kind, rows in plans.items():
        chips = [row["devices"] for row in rows]
        (line,) = held.plot(chips, [row["peak"] / 2**30 for row in rows], marker="o", label=kind)
        too_large = [(row["devices"], row["peak"] / 2**30) for row in rows if row["fits"] is False]
        if too_large:
            held.plot(*zip(*too_large, strict=True), "x", color="black", markersize=9)
        read = [row for row in rows if row["bytes"]]
        chips = [row["devices"] for row in read]
        sent.plot(
            chips, [row["sent"] / 2**20 for row in read], marker="o", color=line.get_color(), label=kind
        )
        for name, style in (("compiler", "-"), ("arithmetic", "--"), ("links", ":")):
            known = [row for row in read if name in row["seconds"]]
            values = [1e3 * row["seconds"][name] for row in known]
            label = f"{kind}, {name}"
            if known:
                seconds.plot(
                    [row["devices"] for row in known],
                    values,
                    style,
                    marker=".",
                    color=line.get_color(),
                    label=label,
                )
    memory = next((row["memory"] for rows in plans.values() for row in rows if row["memory"]), None)
    if memory:
        held.axhline(memory / 2**30, color="grey", linewidth=0.8)
    for axis, title in (
        (held, "GiB a chip"),
        (sent, "MiB that a chip sends in a step"),
        (seconds, "ms a step at least"),
    ):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("chips")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=7)
    if seconds.lines:  # nothing is known of a CPU
        seconds.set_yscale("log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def confusion(path: Path, counts: np.ndarray, names: Sequence[str], calibration: Any) -> Path:
    """Write a PNG of a classifier's mistakes and of its calibration.

    Left, the share of each true class (row) that was taken for each class (column); right, how often it is right when it is so
    sure, against the diagonal on which it would be calibrated, and below how often it is so sure.

    Args:
      path: the file to write.
      counts: int [K, K], see `confusion` in scores/classification.py.
      names: K; written beside the picture where there are at most 40.
      calibration: a `Calibration` of scores/classification.py.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    classes, bins = len(counts), len(calibration.count)
    side = min(max(0.3 * classes, 3.4), 11) + 0.07 * min(max(map(len, names)), 20)
    figure = Figure(figsize=(side + 4.2, side + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(
        [["matrix", "right"], ["matrix", "count"]], width_ratios=[side, 3.4], height_ratios=[3, 1]
    )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis = axes["matrix"]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if classes <= 12:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axis.text(
                column, row, str(count) if count else "", ha="center", va="center", color=colour, fontsize=8
            )
    if classes <= 40:
        short = [_plain(textwrap.shorten(name, 20, placeholder="...")) for name in names]
        axis.set_xticks(range(classes), short, rotation=90, fontsize=7)
        axis.set_yticks(range(classes), short, fontsize=7)
    axis.set(xlabel="taken for", ylabel="true")
    axis.set_title(f"{np.trace(counts)} of {counts.sum()} right", fontsize=10)
    middle = (np.arange(bins) + 0.5) / bins
    axis = axes["right"]
    axis.bar(middle, np.nan_to_num(calibration.right), 1 / bins, color="tab:blue", edgecolor="white")
    axis.plot(calibration.confidence, calibration.right, ".", color="black")
    axis.plot([0, 1], [0, 1], "--", color="grey", linewidth=0.8)
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    axis.set_title(f"calibration error {calibration.ece:.3f}", fontsize=10)
    axes["count"].bar(middle, calibration.count, 1 / bins, color="grey", edgecolor="white")
    axes["count"].set(xlim=(0, 1), xlabel="confidence", ylabel="answers")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def dots(path: Path, panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Path:
    """Write a PNG with a panel a score: a line for each contestant with its runs as dots, their mean, and its interval.

    A dashed line goes down from the mean of the first. The format is PNG whatever the path is called.

    Args:
      path: the file to write.
      panels: score -> {"name", "values" (one a run), "mean" and "interval" (low, high), None where unknown, "baseline" (drawn
        in grey)}, from top to bottom; the same names in every panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [row["name"] for row in next(iter(panels.values()))]
    width = 1.2 + 0.08 * max(map(len, names)) + 3.6 * len(panels)
    figure = Figure(figsize=(width, 1.1 + 0.36 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (score, rows) in zip(axes, panels.items(), strict=True):
        for place, row in enumerate(rows):
            colour = "dimgrey" if row["baseline"] else "tab:blue"
            below = [place + 0.25] * len(row["values"])  # where the mean does not hide them
            axis.plot(row["values"], below, "o", color=colour, alpha=0.4, markersize=4)
            if row["interval"]:
                axis.plot(row["interval"], [place, place], color=colour, linewidth=2)
            if row["mean"] is not None:
                axis.plot(row["mean"], place, "D", color=colour, markersize=6)
        if rows[0]["mean"] is not None:
            axis.axvline(rows[0]["mean"], color="grey", linestyle="--", linewidth=0.8)
        axis.set_title(_plain(score), fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(names)), [_plain(name) for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, format="png")
    return path


def curves(path: Path, rows: Sequence[Mapping[str, Any]], columns: int = 4) -> Path:
    """Write a PNG with a panel a score: its values over the steps, a line for each part of the run that reports it.

    What was measured at one step only is left out. The file is replaced whole, so that a viewer never sees half of it.

    Args:
      path: the file to write.
      rows: as in metrics.jsonl: {"step": 50, "train/loss": 1.2, "val/loss": ...}.
      columns: panels side by side.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            part, slash, score = name.partition("/")
            if slash and isinstance(value, int | float):
                points.setdefault(score, {}).setdefault(part, []).append((row["step"], value))
    lines = {
        score: {part: values for part, values in parts.items() if len({step for step, _ in values}) > 1}
        for score, parts in points.items()
    }
    # What training is about comes first, and how fast it went last.
    speed = ("examples_per_s", "step_time", "data_wait", "mfu", "goodput")
    order = sorted(
        (score for score, parts in lines.items() if parts),
        key=lambda score: (score in speed, score != "loss"),
    )
    columns = min(columns, max(len(order), 1))
    height = -(-len(order) // columns) or 1
    # Sizes in inches: fixed margins, for finding them anew takes longer than all else, and tiny runs draw too.
    across, down = 3.6 * columns, 2.5 * height + 0.25
    figure = Figure(figsize=(across, down))
    FigureCanvasAgg(figure)
    margins = dict(left=0.5 / across, right=1 - 0.15 / across, bottom=0.5 / down, top=1 - 0.3 / down)
    gaps = dict(wspace=0.65 / 2.95, hspace=0.55 / 1.95)
    axes = figure.subplots(height, columns, squeeze=False, gridspec_kw=margins | gaps).ravel()
    for axis, score in zip(axes, order, strict=False):
        for part, values in lines[score].items():
            axis.plot(*zip(*values, strict=True), label=part, linewidth=1.2)
        axis.set_title(_plain(score), fontsize=10)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    for axis in axes[len(order) :]:
        axis.axis("off")
    figure.supxlabel("step", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=90, format="png")
    part.replace(path)
    return path


def _font(height: int) -> Any:
    """Letters that come with matplotlib: the same everywhere, and of more than one alphabet."""
    import matplotlib

    return ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), height
    )


def _plain(text: str) -> str:
    """Dollar signs as themselves: two of them would begin a formula."""
    return text.replace("$", r"\$")


def _wrap(text: str, width: int, most: int) -> str:
    """Lines of about `width` letters, at most `most` of them."""
    lines = textwrap.wrap(text, width, max_lines=most, placeholder=" ...")
    return _plain("\n".join(lines))


def _lit(image: np.ndarray, weights: np.ndarray, largest: float) -> np.ndarray:
    """The image as under a lamp: bright where the model looked with the largest weight, dark elsewhere. -> uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    maps = (weights / max(largest, 1e-6)).reshape(_grid(len(weights), height / width)).astype(np.float32)
    lamp = np.asarray(Image.fromarray(maps).resize((width, height), Image.Resampling.BICUBIC))
    return (image * (0.15 + 0.85 * lamp.clip(0, 1)[..., None])).astype(np.uint8)


def _grid(positions: int, ratio: float) -> tuple[int, int]:
    """The (rows, columns) with rows x columns = positions whose proportion is nearest to `ratio`."""
    pairs = [(rows, positions // rows) for rows in range(1, positions + 1) if positions % rows == 0]
    return min(pairs, key=lambda pair: abs(np.log(pair[0] / pair[1] / ratio)))

"""A run as one HTML page that needs nothing else: where its time went, curves, scores, samples, and its config."""

import base64
import html
import json
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmgen_jax import figures
from mmgen_jax.core import config as config_lib
from mmgen_jax.core import goodput
from mmgen_jax.core.goodput import KINDS, Start
from mmgen_jax.core.writer import read_rows

COLOURS = dict(
    step="#2e7d32",
    data="#f9a825",
    save="#1565c0",
    evaluation="#6a1b9a",
    report="#90a4ae",
    compile="#ef6c00",
    start="#8d6e63",
    lost="#c62828",
    rolled_back="#ad1457",
    away="#e0e0e0",
)
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
.bar { display: flex; height: 26px; margin: 3px 0; background: #fafafa; }
.bar i { display: block; height: 100%; }
.key { display: inline-block; width: 0.9em; height: 0.9em; margin-right: 0.5em; vertical-align: -0.1em; }
table { border-collapse: collapse; } td, th { padding: 0.15em 1em 0.15em 0; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 13px; }
.big { font-size: 1.25em; } .grey { color: #777; }
"""
PREDICTIONS = 8  # examples of each evaluation that the page shows
SILENT = 6 * goodput.WRITE_EVERY  # seconds after which a run that writes nothing does not run any more


def write(workdir: str | Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or not; it is one file without a link to another.

    Args:
      workdir: made by `train`.
      out: the file to write; default report.html in the workdir.

    Returns:
      `out`.

    Raises:
      FileNotFoundError: the workdir has no config.json; says what makes one.
    """
    workdir = Path(workdir)
    config = config_lib.load_json(workdir / "config.json")
    starts = read_starts(workdir)
    metrics = workdir / "metrics.jsonl"
    rows = [row for row in read_rows(metrics) if "step" in row] if metrics.exists() else []
    step = max([row["step"] for row in rows] + [start.last or 0 for start in starts[-1:]], default=0)
    name = html.escape(workdir.resolve().name)
    about = f"{config.task.name}, step {step:,} of {config.steps:,}; {state(starts)}. Page of {_when(time.time())}."
    parts = [
        f"<h1>{name}</h1><p class=grey>{html.escape(about)}</p>",
        _time(starts),
        _curves(rows),
        _tables(workdir / "scores"),
        _numbers(rows),
        _pictures(workdir / "figures"),
        _predictions(workdir / "predictions"),
        _section("Config", f"<pre>{html.escape(config_lib.to_json(config))}</pre>"),
        _where(starts),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )
    out = out or workdir / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def read_starts(workdir: Path) -> list[Start]:
    """A run's starts; none of a run that an earlier version made."""
    path = workdir / goodput.FILE
    return goodput.read(path) if path.exists() else []


def state(starts: Sequence[Start]) -> str:
    """Whether a run runs, or how it ended."""
    if not starts:
        return "its time was not recorded"
    last, silent = starts[-1], time.time() - starts[-1].ended
    if last.end:
        return last.end if last.end == "finished" else f"ended by {last.end.rstrip('. ')}"
    if silent < SILENT:
        return "it runs"
    return f"it was killed, or hangs: no word since {_when(last.ended)}"


def summary(starts: Sequence[Start]) -> str:
    """One line: what share of the time was steps that count."""
    if not starts:
        return "No time.jsonl here: a version of mmgen_jax that keeps none made this run."
    seconds = goodput.totals(starts)
    whole = sum(seconds.values())
    ran = whole - seconds["away"]
    again = f", {len(starts)} starts" if len(starts) > 1 else ""
    return (
        f"{100 * seconds['step'] / max(ran, 1e-9):.1f} % of {duration(ran)} was training steps that count"
        f" ({100 * seconds['step'] / max(whole, 1e-9):.1f} % of the {duration(whole)} since the first start{again})"
    )


def _time(starts: Sequence[Start]) -> str:
    """All seconds as one bar and a table, then a bar for each start."""
    if not starts:
        return ""
    seconds = goodput.totals(starts)
    whole = max(sum(seconds.values()), 1e-9)
    table = _table(
        ("", "time", "share", ""),
        (
            (
                _key(kind),
                duration(seconds[kind]),
                f"{100 * seconds[kind] / whole:.1f} %",
                html.escape(meaning),
            )
            for kind, meaning in KINDS.items()
        ),
        numbers=(1, 2),
    )
    text = f"<p class=big>{html.escape(summary(starts))}</p>{_bar(seconds, whole)}{table}"
    if len(starts) > 1:
        longest = max(sum(start.seconds.values()) for start in starts)
        lines = (
            (
                _when(start.began),
                "" if start.step is None else f"{start.step:,} to {start.last:,}",
                "" if start.ready is None else duration(start.ready),
                duration(start.ended - start.began),
                duration(start.seconds["lost"] + start.seconds["rolled_back"]),
                f"<div style='width: 400px'>{_bar(start.seconds, max(longest, 1e-9))}</div>",
                html.escape(start.end or state([start])),
            )
            for start in starts
        )
        heads = ("began", "steps", "first step after", "ran", "lost", "until the next began", "end")
        text += "<h3>Starts</h3>" + _table(heads, lines, numbers=(2, 3, 4))
    return _section("Time", text)


def _curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Drawn anew from the numbers: the run's own picture may be older."""
    if not rows:
        return ""
    with tempfile.TemporaryDirectory() as folder:
        return _section("Curves", _image(figures.curves(Path(folder) / "curves.png", rows)))


def _tables(folder: Path) -> str:
    """The newest table of each evaluation, and its signature: what a run prints at its end."""

    def text(value: float | None) -> str:
        return "" if value is None else f"{value:.5g}"

    parts = ""
    for path in _newest(folder.glob("*.json")).values():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # it is being written
            continue
        lines = (
            (
                html.escape(name),
                text(row["value"]),
                " .. ".join(map(text, row["interval"] or ())),
                text(row["floor"]),
                text(row["ceiling"]),
            )
            for name, row in found["rows"].items()
        )
        heads = ("", "value", "95 % interval", "floor", "ceiling")
        parts += f"<h3>{html.escape(path.stem)}</h3>" + _table(heads, lines, numbers=(1, 2, 3, 4))
        parts += f"<p class=grey>{html.escape(found['signature'])}</p>" if found["signature"] else ""
    return _section("Scores", parts)


def _numbers(rows: Iterable[Mapping[str, Any]]) -> str:
    """The last value of every number."""
    last = {
        name: (value, row["step"])
        for row in rows
        for name, value in row.items()
        if name not in ("step", "time")
    }
    lines = (
        (html.escape(name), "not finite" if value is None else f"{value:.5g}", f"{step:,}")
        for name, (value, step) in sorted(last.items())
        if value is None or isinstance(value, int | float)
    )
    if not last:
        return ""
    table = _table(("", "value", "at step"), lines, numbers=(1, 2))
    return _section("Last numbers", f"<details><summary>all {len(last)}</summary>{table}</details>")


def _pictures(folder: Path) -> str:
    """The newest picture of each kind, as files of one kind differ in their step."""
    newest = _newest(path for suffix in ("png", "gif") for path in folder.glob(f"*.{suffix}"))
    newest.pop("curves.png", None)
    return _section(
        "Pictures",
        "".join(f"<h3>{html.escape(path.stem)}</h3>{_image(path)}" for path in newest.values()),
    )


def _predictions(folder: Path) -> str:
    """The first examples of each evaluation's newest predictions, field by field."""
    text = ""
    for path in _newest(folder.glob("*.jsonl")).values():
        text += f"<h3>{html.escape(path.stem)}</h3>"
        for row in read_rows(path)[:PREDICTIONS]:
            cells = ((html.escape(key), html.escape(_plain(value))) for key, value in row.items())
            text += _table((), cells) + "<br>"
    return _section("Predictions", text)


def _where(starts: Sequence[Start]) -> str:
    """Machines and versions, from the first start on which had them."""
    lines, before = [], None
    for start in starts:
        facts = {**start.facts.get("versions", {})}
        facts |= {key: value for key, value in start.facts.items() if key != "versions"}
        if facts != before:
            text = ", ".join(f"{key} {value}" for key, value in facts.items())
            lines.append((_when(start.began), html.escape(text)))
        before = facts
    return _section("Versions", _table(("from", ""), lines)) if before else ""


def _newest(paths: Iterable[Path]) -> dict[str, Path]:
    """{kind: path}: samples_000100.png and samples_000200.png are of one kind."""
    found = {}
    for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
        found[re.sub(r"_\d+(?=\.\w+$)", "", path.name)] = path
    return dict(sorted(found.items()))


def _section(title: str, text: str) -> str:
    return f"<h2>{title}</h2>\n{text}" if text else ""


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 600 else text[:600] + " ..."


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Cells are HTML already; columns in `numbers` stand right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = (" class=n" if i in numbers else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{m}>{c}</{tag}>" for c, m in zip(cells, marks, strict=True)) + "</tr>"

    return (
        "<table>"
        + (line(heads, "th") if heads else "")
        + "\n".join(line(row, "td") for row in rows)
        + "</table>"
    )


def _bar(seconds: Mapping[str, float], whole: float) -> str:
    parts = (
        f'<i style="width: {100 * seconds[kind] / whole:.3f}%; background: {COLOURS[kind]}" '
        f'title="{kind}: {duration(seconds[kind])}"></i>'
        for kind in KINDS
        if seconds[kind] > 0
    )
    return f"<div class=bar>{''.join(parts)}</div>"


def _key(kind: str) -> str:
    return f'<span class=key style="background: {COLOURS[kind]}"></span>{kind}'


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/{path.suffix[1:]};base64,{data}">'


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment))


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 3 h 07 min, 2 d 04 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return "{} min {:02d} s".format(*divmod(int(seconds), 60))
    if seconds < 86400:
        return "{} h {:02d} min".format(*divmod(int(seconds / 60), 60))
    return "{} d {:02d} h".format(*divmod(int(seconds / 3600), 24))

"""scripts/report.py: one page without a link to another file, whatever a run has made so far."""

import base64
import html.parser
import io
import json
import re

import pytest
from PIL import Image

from mmgen_jax import report
from mmgen_jax.core import goodput

CONFIG = {"seed": 0, "steps": 20, "task": {"name": "captioning", "note": "<b>&"}}


class Page(html.parser.HTMLParser):
    """The headings, texts and pictures of a page; every tag that must be closed is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.sources, self.links, self.widths = [], [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag == "i":
            self.widths.append(float(re.match(r"width: ([\d.]+)%", attrs["style"])[1]))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def workdir(tmp_path):
    """Two starts, of which the second did five steps again."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    lines = [
        {"began": 100.0, "step": 0},
        {"time": 110.0, "step": 10, "seconds": {"start": 2, "compile": 3, "step": 5}},
        {"time": 115.0, "step": 15, "seconds": {"step": 5}},
        {"began": 125.0, "step": 10},
        {"time": 135.0, "step": 20, "seconds": {"start": 1, "step": 6, "data": 1, "evaluation": 2}},
    ]
    (tmp_path / goodput.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_whole_run(workdir, script):
    write(
        workdir / "metrics.jsonl",
        [
            {"step": 10, "time": 1, "train/loss": 2.0, "val/$a$": 0.25},
            {"step": 20, "time": 2, "train/loss": 1.0, "val/nan": None},
        ],
    )
    for step in (10, 20):
        path = workdir / "figures" / f"val_{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (step, 4)).save(path)
    write(workdir / "predictions" / "val_000020.jsonl", [{"caption": "a <script> & co", "references": ["x"]}])
    code, out, _ = script("report", "--workdir", workdir)
    assert code == 0
    assert out.splitlines()[0] == (
        "44.0 % of 25.0 s was training steps that count (31.4 % of the 35.0 s since the first start, 2 starts)"
    )
    text = (workdir / "report.html").read_text()
    page = Page(text)
    assert not page.links and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script>" not in text and "a <script> & co" in page.texts
    assert '"note": "<b>&"' in "".join(page.texts)
    # The first bar is the whole run, and all kinds but two are in it.
    assert sum(page.widths[:7]) == pytest.approx(100, abs=0.1)
    sizes = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size for source in page.sources]
    assert sizes[0][0] > 300, "the curves"
    assert sizes[1:] == [(20, 4)], "of each kind the newest"
    assert "not finite" in page.texts and "val/$a$" in page.texts


def test_a_run_that_has_just_begun(workdir, tmp_path):
    out = report.write(workdir, tmp_path / "page.html")
    page = Page(out.read_text())
    assert "Time" in page.texts and "Config" in page.texts and "Curves" not in page.texts
    assert not page.sources


def test_no_run(tmp_path, script):
    code, _, errors = script("report", "--workdir", tmp_path)
    assert code == 1 and "config.json" in errors and "scripts/train.py" in errors


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (65, "1 min 05 s"),
        (3599, "59 min 59 s"),
        (11220, "3 h 07 min"),
        (187200, "2 d 04 h"),
    ],
)
def test_durations(seconds, text):
    assert report._duration(seconds) == text

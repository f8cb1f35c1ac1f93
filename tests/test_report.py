"""scripts/report.py: one page without a link to another file, whatever a run has made so far."""

import base64
import html.parser
import io
import json
import re
import time

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
    """Two starts: the first was killed, the second did five steps again and one rollback."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    lines = [
        {"began": 100.0, "host": "here", "versions": {"jax": "1.2.3"}},
        {"time": 105.0, "step": 0, "seconds": {"start": 2, "compile": 3}, "from": 0},
        {"time": 110.0, "step": 10, "seconds": {"step": 5}},
        {"time": 115.0, "step": 15, "seconds": {"step": 5}},
        {"began": 125.0, "host": "here", "versions": {"jax": "1.2.4"}},
        {"time": 126.0, "step": 10, "seconds": {"start": 1}, "from": 10},
        {"time": 128.0, "step": 12, "seconds": {"step": 2}},
        {"time": 130.0, "step": 12, "seconds": {"step": 2}, "from": 10},
        {"time": 137.0, "step": 20, "seconds": {"step": 4, "data": 1, "evaluation": 2}, "end": "finished"},
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
    for step in (10, 20):
        row = {"value": step / 3, "interval": [1.0, 2.0], "floor": None, "ceiling": 100.0}
        write(
            workdir / "scores" / f"val_{step:06d}.json",
            [{"rows": {"b<leu": row}, "signature": f"sign|{step}"}],
        )
    write(workdir / "predictions" / "val_000020.jsonl", [{"caption": "a <script> & co", "references": ["x"]}])
    code, out, _ = script("report", "--workdir", workdir)
    assert code == 0
    assert out.splitlines()[0] == (
        "33.3 % of 27.0 s was training steps that count (24.3 % of the 37.0 s since the first start, 2 starts)"
    )
    text = (workdir / "report.html").read_text()
    page = Page(text)
    assert not page.links and all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "<script>" not in text and "a <script> & co" in page.texts
    assert '"note": "<b>&"' in "".join(page.texts)
    # The first bar is the whole run, and all kinds but two are in it.
    assert sum(page.widths[:8]) == pytest.approx(100, abs=0.1)
    assert "captioning, step 20 of 20; finished. " in text
    assert "no word since" in text, "of the first start"
    assert "1.2.3" in text and "1.2.4" in text
    assert "6.6667" in page.texts and "b<leu" in page.texts and "sign|20" in page.texts
    assert "3.3333" not in page.texts, "only the newest"
    sizes = [Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).size for source in page.sources]
    assert sizes[0][0] > 300, "the curves"
    assert sizes[1:] == [(20, 4)], "of each kind the newest"
    assert "not finite" in page.texts and "val/$a$" in page.texts


def test_a_run_that_has_just_begun(workdir, tmp_path):
    out = report.write(workdir, tmp_path / "page.html")
    page = Page(out.read_text())
    assert "Time" in page.texts and "Config" in page.texts and "Curves" not in page.texts
    assert not page.sources


def test_a_run_that_is_going_on_and_one_that_was_killed(workdir):
    with (workdir / goodput.FILE).open("a") as file:
        print(json.dumps({"began": time.time() - 9, "host": "here"}), file=file)
        print(json.dumps({"time": time.time() - 1, "step": None, "seconds": {"start": 8}}), file=file)
    starts = report.read_starts(workdir)
    assert report.state(starts) == "it runs" and "it runs" in report.write(workdir).read_text()
    assert report.state(starts[:1]).startswith("it was killed, or hangs: no word since ")
    starts[-1].end = "Interrupted: Stopped and saved at step 9."
    assert report.state(starts) == "ended by Interrupted: Stopped and saved at step 9"


def test_a_run_of_an_earlier_version(workdir, script):
    (workdir / goodput.FILE).unlink()
    code, out, _ = script("report", "--workdir", workdir)
    assert code == 0 and "No time.jsonl here" in out
    assert "Config" in Page((workdir / "report.html").read_text()).texts


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
    assert report.duration(seconds) == text

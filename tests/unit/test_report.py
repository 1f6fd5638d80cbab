"""The report, read back with an independent parser."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from trainer.report import Code, Figure, Heading, Paragraph, Table, write_report

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects tags, attributes and text; fails on a tag that is closed by another."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))


@pytest.fixture
def write(tmp_path):
    def page(*sections, title="Report"):
        write_report(tmp_path / "report.html", title, sections)
        return (tmp_path / "report.html").read_text(encoding="utf-8")

    return page


NASTY = """<script>alert("x")</script> & 'caf\u00e9' <fox> </td>"""


def test_every_text_is_escaped_and_comes_back(write, picture):
    sections = [Heading(NASTY), Paragraph(NASTY), Code(NASTY), Table([NASTY], [[NASTY]]), Figure(picture, NASTY)]
    page = Page(write(*sections, title=NASTY))
    for tag in ("title", "h1", "h2", "p", "pre", "th", "td", "figcaption"):
        assert "".join(page.text[tag]) == NASTY, tag
    assert dict(page.attributes)["img"]["alt"] == NASTY
    assert "script" not in page.tags and "fox" not in page.tags


def test_nothing_is_loaded_from_elsewhere(write, picture):
    text = write(Heading("a"), Figure(picture, "b"))
    page = Page(text)
    assert not {"script", "link", "iframe", "base", "object"} & set(page.tags)
    for tag, attributes in page.attributes:
        assert not any(name.startswith("on") or name in ("href", "srcset", "style") for name in attributes), tag
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/png;base64,")
    assert "url(" not in text and "@import" not in text and "://" not in text


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_images_decode_back_bit_equal(write, picture, mode):
    original = picture.convert(mode)
    source = dict(Page(write(Figure(original, "x"))).attributes)["img"]["src"]
    decoded = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
    assert decoded.mode == mode
    assert np.array_equal(np.asarray(decoded), np.asarray(original))


def test_table_cells(write):
    table = Table(["name", "value"], [["fox", 0.123456], ["owl", 12], [None, 1e-7], ["nothing", None]])
    page = Page(write(table))
    assert page.text["td"] == ["fox", "0.1235", "owl", "12", "1e-07", "nothing"]
    assert page.tags.count("td") == 8 and page.tags.count("tr") == 5
    assert sum(attributes.get("class") == "number" for _, attributes in page.attributes) == 3


def test_sections_keep_their_order(write, picture):
    sections = [Paragraph("one"), Figure(picture, "two"), Table(["three"], []), Heading("four"), Code("five")]
    tags = [tag for tag in Page(write(*sections)).tags if tag in ("p", "figure", "table", "h2", "pre")]
    assert tags == ["p", "figure", "table", "h2", "pre"]


def _luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_text_has_contrast_in_light_and_dark(write):
    text = write()
    assert "color-scheme: light dark" in text and "@media (prefers-color-scheme: dark)" in text
    schemes = re.findall(r":root \{(.*?)\}", text)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#\w+);", scheme))
        for name, value in colors.items():
            colors[name] = value if len(value) == 7 else "#" + "".join(c * 2 for c in value[1:])
        for ink, paper in (("ink", "paper"), ("faint", "paper"), ("ink", "code")):
            light, dark = sorted((_luminance(colors[ink]), _luminance(colors[paper])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2 AA


def test_an_older_report_is_replaced_and_nothing_else_left(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(path, "New", [])
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert "<h1>New</h1>" in path.read_text(encoding="utf-8")

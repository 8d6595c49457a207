import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from bilevel.data.rows import Row
from bilevel.errors import InputError
from bilevel.runtime.metrics import MetricsWriter
from bilevel.runtime.report import write_report
from bilevel.runtime.report.pictures import curves
from bilevel.runtime.report.row_groups import group_rows
from bilevel.runtime.run_folder import read_summary, write_summary
from bilevel.runtime.weights import write_weights
from tests.runtime.invented_run import invent_rows, invent_run, invent_weights

EMPTY_ELEMENTS = {"meta", "br", "path", "use"}


class Page(HTMLParser):
    """Checks that elements nest; collects texts, identifiers and what the page refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.names: list[str] = []
        self.references: list[str] = []
        self.tags: Counter[str] = Counter()
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.names += [value for key, value in attrs if key == "id" and value]
        self.references += [value for key, value in attrs if key in ("src", "href", "xlink:href") and value]
        if tag not in EMPTY_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY_ELEMENTS:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY_ELEMENTS:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Row]]:
    folder = tmp_path_factory.mktemp("run")
    rows = invent_rows(400)
    invent_run(folder, rows, steps=1000)
    return folder, rows


def test_page_needs_nothing_but_itself(full_run: tuple[Path, list[Row]]) -> None:
    page = Page(write_report(*full_run))
    assert page.tags["svg"] == 4
    assert not page.tags.keys() & {"script", "link", "iframe", "img", "object"}
    assert all(reference.startswith("#") for reference in page.references)
    assert "url(http" not in page.source
    assert "@import" not in page.source


def test_pictures_use_the_colours_of_the_page_and_do_not_mix_names(full_run: tuple[Path, list[Row]]) -> None:
    page = Page(write_report(*full_run))
    pictures = "".join(re.findall(r"<svg.*?</svg>", page.source, flags=re.DOTALL))
    assert re.findall(r"#[0-9a-f]{6}\b", pictures) == []
    assert len(page.names) == len(set(page.names))
    inner = {reference[1:] for reference in page.references} | set(re.findall(r"url\(#([^)]+)\)", pictures))
    assert inner <= set(page.names)


def test_page_tells_the_result_and_every_number_of_the_table(full_run: tuple[Path, list[Row]]) -> None:
    page = Page(write_report(*full_run))
    assert "bds_alpaca · tiny · seed 0" in page.text
    assert "BDS reaches an exact match of 0.812; uniform SFT reaches 0.621" in page.text
    assert "88% of what the faults cost is recovered" in page.text
    assert "in 98.4% of all pairs" in page.text
    for number in ("0.3124", "0.984", "0.841", "1184", "1.9241"):
        assert number in page.text
    assert page.source.count('class="best"') == 2
    assert "weighting.rate" in page.text
    assert "packages.jax" in page.text
    assert "2 × empty response" in page.text
    assert "corpus:12" in page.text


def test_heaviest_and_lightest_rows_come_with_their_texts(full_run: tuple[Path, list[Row]]) -> None:
    folder, rows = full_run
    page = Page(write_report(folder, rows))
    weights = invent_weights(rows)
    heaviest, lightest = rows[int(np.argmax(weights))], rows[int(np.argmin(weights))]
    before, after = page.text.split("Lightest")
    assert heaviest.id in before
    assert heaviest.output in before
    assert f"{weights.max() / weights.mean():.3g}×" in before
    assert lightest.id in after
    assert lightest.input in after


def test_the_same_run_gives_the_same_page(full_run: tuple[Path, list[Row]]) -> None:
    first = write_report(*full_run).read_bytes()
    assert write_report(*full_run).read_bytes() == first


def test_texts_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=http://a.b>&amp;"
    rows = [Row(f"{evil}{i}", evil, evil, evil, {"fault": evil if i else ""}) for i in range(4)]
    invent_run(tmp_path, rows, steps=10)
    (tmp_path / "rejected.jsonl").write_text(json.dumps({"id": evil, "reason": evil, "remedy": evil}) + "\n")
    (tmp_path / "config.yaml").write_text(json.dumps({evil: evil}))
    write_summary(tmp_path, read_summary(tmp_path) | {"preset": evil})
    page = Page(write_report(tmp_path, rows))
    assert page.tags["script"] == page.tags["img"] == 0
    assert page.text.count(evil) > 10


def test_long_texts_are_cut(tmp_path: Path) -> None:
    rows = [Row(f"r:{i}", "do", "", "word " * 1000) for i in range(2)]
    invent_run(tmp_path, rows, steps=10)
    page = Page(write_report(tmp_path, rows))
    assert page.text.count("word") < 300
    assert "word …" in page.text


def test_one_method_without_labels_gaps_or_texts(tmp_path: Path) -> None:
    rows = invent_rows(50, labelled=False)
    invent_run(tmp_path, rows, methods=("uniform",), steps=10)
    page = Page(write_report(tmp_path))
    assert "all rows (50)" in page.text
    assert "By label" not in page.text
    assert "recovered" not in page.text
    assert 'class="best"' not in page.source
    assert "corpus:1" in page.text
    assert page.tags["svg"] == 3


def test_labels_come_from_the_rows_or_from_the_table_of_weights(tmp_path: Path) -> None:
    rows = invent_rows(50)
    invent_run(tmp_path, rows, steps=10)
    assert "wrong answer (" in Page(write_report(tmp_path, rows)).text
    assert "wrong answer (" not in Page(write_report(tmp_path)).text
    columns = {"id": [row.id for row in rows], "weight": invent_weights(rows)}
    write_weights(tmp_path / "weights.parquet", columns | {"fault": [row.labels["fault"] for row in rows]})
    assert "wrong answer (" in Page(write_report(tmp_path)).text


def test_equal_weights_have_no_heaviest_row(tmp_path: Path) -> None:
    rows = invent_rows(10)
    invent_run(tmp_path, rows, steps=10)
    write_weights(tmp_path / "weights.parquet", {"id": [row.id for row in rows], "weight": np.ones(10)})
    page = Page(write_report(tmp_path, rows))
    assert "All rows weigh the same." in page.text
    assert "Heaviest" not in page.text


def test_rows_without_any_weight_are_shown_too(tmp_path: Path) -> None:
    rows = invent_rows(10)
    invent_run(tmp_path, rows, steps=10)
    write_weights(tmp_path / "weights.parquet", {"id": [row.id for row in rows], "weight": np.zeros(10)})
    assert "All rows weigh the same." in Page(write_report(tmp_path, rows)).text


def test_summary_alone_gives_a_page(tmp_path: Path) -> None:
    summary = {"experiment": "e", "preset": "p", "seed": 1, "seconds": 2.0, "steps": 3}
    write_summary(tmp_path, summary | {"methods": {"bds": {"test_loss": None}}})
    page = Page(write_report(tmp_path))
    assert "3 steps · 2.0 s" in page.text
    assert "None: every row was used." in page.text
    assert page.tags["svg"] == 0


def test_skipped_steps_are_said(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(10), methods=("bds",), steps=10)
    with MetricsWriter(tmp_path, events=False) as metrics:
        metrics.write("bds", 10, {"lower_loss": float("nan"), "skipped_steps": 3})
    assert "BDS: 3 steps were not applied" in Page(write_report(tmp_path)).text


def test_many_rejected_rows_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    invent_run(tmp_path, invent_rows(10), steps=10)
    lines = [{"id": f"r:{i}", "reason": "too long" if i % 3 else "empty\u2028response"} for i in range(60)]
    (tmp_path / "rejected.jsonl").write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines))
    page = Page(write_report(tmp_path))
    assert "40 × too long" in page.text
    assert "The first 50 of 60" in page.text
    assert "r:49" in page.text
    assert "r:50" not in page.text


def test_unfinished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary.json: no such file; .*finished run"):
        write_report(tmp_path)


def test_rows_belong_to_their_fault_first() -> None:
    labels = {
        "fault": ["", "off_topic", "", "off_topic", "", None, "cut"],
        "hard": ["", "yes", "yes", "", "", None, ""],
        "duplicate": ["", "", "yes", "", "r:1", None, ""],
    }
    groups = [(group.name, group.kind, group.positions.tolist()) for group in group_rows(labels, 7)]
    assert groups == [
        ("clean", "plain", [0, 5]),
        ("off topic", "fault", [1, 3]),
        ("cut", "fault", [6]),
        ("hard", "special", [2]),
        ("duplicate", "special", [4]),
    ]


def test_many_kinds_of_faults_are_gathered() -> None:
    groups = group_rows({"fault": [f"fault {i}" for i in range(20)] + [""]}, 21)
    assert (groups[0].name, groups[-1].name) == ("clean", "other faults")
    assert [len(group.positions) for group in groups] == [1] * 7 + [14]
    assert sorted(np.concatenate([group.positions for group in groups]).tolist()) == list(range(21))


def test_curves_average_neighbours_and_skip_methods_without_the_number() -> None:
    metrics = {
        "bds": [{"step": step, "lower_loss": float(step % 2) + 1} for step in range(1000)],
        "uniform": [{"step": 0, "lower_loss": None}],
    }
    picture = curves(metrics, "lower_loss", "Loss", "A loss.")
    assert picture is not None
    assert picture.legend == (("bds", 1),)
    assert "means of up to 9 measurements" in picture.caption
    assert curves(metrics, "upper_loss", "Loss", "A loss.") is None

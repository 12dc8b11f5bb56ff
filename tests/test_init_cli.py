"""The verb init: a weight file, what every parameter came from, and a page."""

import html.parser
import json

import numpy as np
import pytest
from planted import STUDENT, TEACHER, random_teacher, stereo

import lunar_distill_jax as ld
from lunar_distill_jax.cli import main
from lunar_distill_jax.init.tree import flatten
from lunar_distill_jax.report.initialisation import write_initialisation


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    ld.save(stereo(random_teacher()), folder / "teacher.safetensors")
    (folder / "student.json").write_text(json.dumps(STUDENT.to_dict()))
    return folder


def init(files, method, *more, out="out.safetensors"):
    return main(
        ["init", "--teacher", str(files / "teacher.safetensors"), "--method", method]
        + ["--student", str(files / "student.json"), "--out", str(files / out), *more]
    )


class Page(html.parser.HTMLParser):
    """The headings and the text of a page; every element must be closed."""

    VOID = {"meta", "link", "img", "br", "hr", "input", "line", "circle", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.text = [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_calibrated_writes_a_student_with_its_report_and_page(files, capsys):
    work = files / "work"
    more = ("--calibration", "synthetic", "--pairs", "5", "--size", "32", "--workdir", str(work))
    assert init(files, "calibrated", *more) == 0
    printed = capsys.readouterr().out
    assert "100.0 % of" in printed and "calibrated" in printed
    student = ld.load(files / "out.safetensors")
    assert student.config == STUDENT
    assert student.meta["source"].startswith("calibrated from planted-teacher")
    report = json.loads((files / "out.safetensors.report.json").read_text())
    assert set(report["parameters"]) == set(flatten(student.params))
    entry = report["parameters"]["decoder/view1_block1/attn/proj/kernel"]
    assert entry["how"] == "calibrated"
    assert "decoder/view1_block1/attn/qkv" in entry["from"]
    block = report["blocks"]["view2_block0"]
    assert len(block["attn"]["heads"]) == STUDENT.decoder.heads
    assert len(block["mlp"]["units"]) == 2 * STUDENT.decoder.width
    for part in (report["stitching"], block["attn"], block["cross_attn"], block["mlp"]):
        assert part["r2"] <= 1 and part["condition"] >= 1
    assert report["calibration"]["pairs"] == 5 and report["calibration"]["size"] == [32, 32]
    assert set(report["calibration"]["seconds"]) == {
        *("encoders", "moments", "stitching", "blocks", "heads")
    }
    energy = report["energy"]
    assert len(energy["norms"]) == 2 * (3 * TEACHER.decoder.depth + 1)
    assert all(np.all(np.diff(shares) >= 0) for shares in energy["norms"].values())
    page = Page((files / "out.safetensors.report.html").read_text())
    assert page.headings[:3] == ["What the width keeps", "Blocks", "Stitching and heads"]
    assert "5 pairs of 32 x 32 px" in page.text and "MB on disk" in page.text
    assert f"--workdir {work}" in page.text and (work / "block1.npz").is_file()


@pytest.mark.parametrize("method", ["random", "heads_only", "paper", "paper_fixed", "structured"])
def test_methods_that_read_no_images(files, method, tmp_path):
    assert init(files, method) == 0
    report = json.loads((files / "out.safetensors.report.json").read_text())
    assert report["method"] == method and (report["share"] > 0) == (method != "random")
    write_initialisation(tmp_path / "page.html", report, {}, "command")
    Page((tmp_path / "page.html").read_text())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("paper", "--calibration", "synthetic"),
            "--calibration is synthetic but the method paper",
        ),
        (("paper", "--workdir", "w"), "--workdir is w but the method paper keeps no activations"),
        (("calibrated",), "needs pairs of images: give calibration"),
        (("calibrated", "--calibration", "synthetic", "--size", "40"), "The size is 40 pixels"),
        (("calibrated", "--calibration", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_nothing_is_written(files, capsys, more, message):
    assert init(files, *more, out="never.safetensors") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in error
    assert not list(files.glob("never*"))
    assert init(files, "paper", out="never.npz") == 2
    assert "a weight file of ours ends in .safetensors" in capsys.readouterr().err

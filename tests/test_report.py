"""Figures and pages: geometry, what is left out, and that a page needs nothing but itself."""

from __future__ import annotations

import functools
import io
import json
import re
import shutil
import subprocess
import types
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import exptilt
from exptilt import hub
from exptilt.data.types import DataSet
from exptilt.errors import InputError
from exptilt.evaluation.likelihood import likelihood
from exptilt.generators.glow import Glow
from exptilt.report import figures, numbers, run_report, samples
from exptilt.report.curves import Series, curves
from exptilt.report.page import Code, KeyValues, Picture, Row, Section, Svg, Table, render, write_page
from exptilt.report.samples import Drawings
from exptilt.report.theme import THEMES

NASTY = '<script>alert(1)</script> & "q" $x^2$ {{ 1 }}'
RESULT = {
    "protocol": {"data": "digits", "neighbours": 5, "hash": "3fa9c1d27b40"},
    "n": 1000,
    "seeds": [0, 1],
    "data": {"class_entropy": 2.301},
    "base": {
        "fid": 18.52,
        "fid_ci": [18.0, 19.0],
        "kid": 0.0412,
        "recall": 0.6,
        "coverage": 0.7,
        "class_entropy": 2.24,
        "fid_per_seed": [18.4, 18.64],
    },
    "tilted": {
        "fid": 9.26,
        "fid_ci": [9.0, 9.5],
        "kid": 0.0097,
        "recall": 0.7,
        "coverage": 0.8,
        "class_entropy": 2.29,
        "fid_per_seed": [9.1, 9.42],
    },
    "floor": {"fid": 0.62, "fid_ci": [0.6, 0.64], "kid": 0.0003, "recall": None, "n": 500},
    "reconstruction": None,
}


class Links(HTMLParser):
    """Collects everything that a browser would load, and the elements that were opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.opened: list[str] = []
        self.ids: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster") and value:
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)


class FakeGenerator:
    """Images that are told apart by their place: sample i is grey level i."""

    def __init__(self, data_shape: tuple[int, ...] = (1, 4, 4)) -> None:
        self.data_shape = data_shape

    def sample(self, n: int, *, seed: int = 0) -> torch.Tensor:
        return self.decode(torch.linspace(-1, 0, n)[:, None])

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        ones = (1,) * (len(self.data_shape) - 1)
        return z[:, 0].reshape(-1, 1, *ones).expand(-1, *self.data_shape).clone()


class FakeTilted:
    """Chains of 20 steps that brighten every sample."""

    def __init__(self, data_shape: tuple[int, ...] = (1, 4, 4)) -> None:
        self.generator = FakeGenerator(data_shape)
        self.sampler = types.SimpleNamespace(kernel="mala")

    def sample(self, n: int, *, seed: int, return_latents: bool, return_info: bool, record_every: int) -> tuple:
        assert return_latents
        assert return_info
        z0 = torch.linspace(-1, 0, n)[:, None]
        steps = list(range(0, 21, record_every))
        info = types.SimpleNamespace(
            trajectory=torch.stack([z0 + step / 20 for step in steps]),
            recorded_steps=steps,
            energy=torch.linspace(2, 1, 20)[:, None].expand(20, n),
            acceptance=torch.full((n,), 0.6),
            sentence="The chains moved.",
        )
        return z0 + 1, info


def drawings(**changes: object) -> Drawings:
    base = np.linspace(-1, 1, 16 * 16).reshape(16, 1, 4, 4)
    values = {"base": base, "tilted": -base, "trajectory": np.stack([base[:3], -base[:3]]), "steps": [0, 10]}
    values |= {"energy": np.linspace(2, 1, 20)[:, None].repeat(16, 1), "acceptance": np.full(16, 0.6)}
    return Drawings(**(values | changes))  # type: ignore[arg-type]


def test_grid_is_exact_to_the_pixel():
    images = torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8)
    grid = figures.image_grid(images, columns=3, scale=2, gap=1)
    assert grid.size == (3 * 12 + 2, 2 * 8 + 1)
    pixels = np.asarray(grid)
    for index in range(5):
        top, left = (index // 3) * 9, (index % 3) * 13
        cell = pixels[top : top + 8, left : left + 12]
        for row, column in np.ndindex(2, 2):
            assert (cell[row::2, column::2] == images[index].permute(1, 2, 0).numpy()).all()
    assert (pixels[:, 12] == 255).all()
    assert (pixels[9:, 26:] == 255).all()


def test_grid_rounds_floats_as_a_file_would_and_shows_broken_pixels():
    images = np.array([-1, 1, 0, 3, np.nan, np.inf]).reshape(6, 1, 1, 1)
    grid = np.asarray(figures.image_grid(images, columns=6, gap=0))[0]
    assert grid.tolist() == [[0] * 3, [255] * 3, [128] * 3, [255] * 3, [255, 0, 255], [255, 0, 255]]


def test_grid_without_images_is_one_empty_cell():
    assert figures.image_grid(torch.empty(0, 1, 4, 6), columns=8).size == (6, 4)


@pytest.mark.parametrize(
    ("images", "options"),
    [(torch.zeros(2, 2, 4, 4), {}), (torch.zeros(2, 4), {}), (torch.zeros(1, 1, 4, 4), {"columns": 0})],
)
def test_grid_refuses_what_it_cannot_draw(images: torch.Tensor, options: dict[str, int]):
    with pytest.raises(InputError):
        figures.image_grid(images, **options)


@pytest.mark.parametrize(("columns", "scale"), [(8, 2), (4, 1), (2, 1)])
def test_before_after_holds_both_grids_and_both_captions(columns: int, scale: int):
    base, tilted = torch.full((8, 1, 32, 32), -1.0), torch.full((8, 1, 32, 32), 1.0)
    tilted[..., 0, 0] = -1
    image = figures.before_after(base, tilted, columns, scale)
    grid = figures.image_grid(base, columns, scale)
    pixels = np.asarray(image)
    assert image.width > 2 * grid.width
    assert image.height > grid.height + 12
    assert (pixels == 0).all(axis=2).sum() >= 8 * (32 * scale) ** 2
    caption = pixels[: image.height - grid.height - 10]
    assert (caption.min(axis=2) < 60).sum() > 100, "captions are drawn in ink"
    border = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, :2].ravel(), pixels[:, -2:].ravel()])
    assert (border == 255).all(), "nothing is cut off at the border"


def test_before_after_refuses_unequal_numbers():
    with pytest.raises(InputError, match="pairs"):
        figures.before_after(torch.zeros(4, 1, 4, 4), torch.zeros(5, 1, 4, 4))


def test_chain_strip_has_a_row_a_chain_and_a_column_a_step():
    trajectory = torch.linspace(-1, 1, 3)[:, None, None, None, None].expand(3, 2, 1, 8, 8)
    image = figures.chain_strip(trajectory, [0, 10, 20], scale=4, gap=2)
    assert image.width == 3 * 32 + 2 * 2
    grid = np.asarray(image)[-(2 * 32 + 2) :]
    assert [int(grid[row, column, 0]) for row in (0, 40) for column in (0, 40, 80)] == [0, 128, 255] * 2
    with pytest.raises(InputError):
        figures.chain_strip(trajectory, [0, 10])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_toy_panels_draw_each_cloud_and_count_what_is_outside(theme):
    points = np.random.default_rng(0).normal(size=(300, 2))
    broken = np.concatenate([points, [[np.nan, 0], [50, 50]]])
    rows = {"Gaussian $x$": [("data", points), ("VAE", broken)], "empty": [("data", np.empty((0, 2)))]}
    image = figures.toy_panels(rows, theme=theme)
    assert image.width > 600
    colours = {pixel for _, pixel in image.getcolors(1 << 24)}  # type: ignore[union-attr]
    assert tuple(bytes.fromhex(THEMES[theme].background[1:])) in colours
    with pytest.raises(InputError):
        figures.toy_panels({})


def test_curves_leave_out_what_is_not_finite_and_say_so():
    lines: list[Series] = [{"label": "a", "x": [0, 1, 2, 3], "y": [1, np.nan, np.inf, 2]}]
    svg = curves(lines, xlabel="step", ylabel="FID")
    assert "2 non-finite values left out" in svg
    assert "nan" not in svg.replace("non-finite", "").lower()
    assert "inf" not in re.sub("non-finite|filter", "", svg.lower())
    assert "left out" not in curves([{"label": "a", "x": [0, 1], "y": [1, 2]}])


@pytest.mark.parametrize("lines", [[], [{"label": "a", "x": [], "y": []}], [{"label": "a", "x": [0], "y": [np.nan]}]])
def test_curves_without_values_say_so(lines: list[Series]):
    svg = curves(lines, vertical=(2.0, "chosen"))
    assert "no finite value to draw" in svg
    ElementTree.fromstring(svg)


def test_curves_are_safe_self_contained_and_made_for_both_themes():
    label = NASTY + "\x00漢"
    lines: list[Series] = [
        {"label": label, "x": range(9), "y": np.arange(9.0) ** 2, "lo": np.zeros(9), "hi": np.full(9, 90.0)},
        {"label": "b", "x": [1.0], "y": [5.0]},
    ]
    options = {"xlabel": label, "ylabel": label, "vertical": (4.0, label)}
    svg = curves(lines, **options)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "<script" not in svg
    assert "$x^2$" in svg, "dollars are text, not mathematics"
    assert not re.search(r"(href=\"|url\()(?!#)", svg)
    assert "prefers-color-scheme:dark" in svg
    for colour in THEMES["light"].series[:2]:
        assert colour in svg
    assert curves(lines, **options) == svg, "the same plot is the same file"


def test_two_curves_on_a_page_share_no_ids():
    plots = [Svg(curves([{"label": "a", "x": [0, 1], "y": [0, k]}]), "a plot") for k in (1, 2)]
    ids = Links(render(title="t", intro="", sections=[Section("s", blocks=[Row(plots)])])).ids
    assert len(ids) == len(set(ids)) > 10


@functools.cache
def full_page() -> str:
    """A page with every kind of block, and with strings that mean harm."""
    sections = run_report.build_sections(
        {"command": f"exptilt tilt {NASTY}", "version": NASTY, "config": {"data": NASTY}, "seconds": 4000.0},
        [{"iteration": 10 * i, "loss": 1 / (i + 1), "energy_data": -i, "energy_model": i} for i in range(300)]
        + [{"iteration": 1000, "kid": 0.01, "chosen_iteration": 1000}, {"iteration": 2000, "kid": float("nan")}],
        RESULT,
        drawings(sentence=NASTY),
    )
    extra = [Picture(Image.new("RGB", (4, 4)), NASTY, NASTY, pixelated=True), Code(NASTY), KeyValues([(NASTY, NASTY)])]
    table = Table(NASTY, [NASTY, NASTY], [[NASTY, NASTY]], note=NASTY, protocol="abc", command=NASTY)
    return render(title=NASTY, intro=NASTY, sections=[*sections, Section(NASTY, NASTY, [Row(extra), table])])


def test_page_loads_nothing_and_escapes_everything():
    page = full_page()
    links = Links(page)
    assert "script" not in links.opened
    assert all(load.startswith(("data:", "#")) for load in links.loads), "nothing is loaded from elsewhere"
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page.replace("&#39;", "'")
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<img ") == len(re.findall(r"<img [^>]*alt=\"[^\"]+\"", page))


def test_page_shows_the_table_with_its_protocol():
    page = full_page()
    # pragma: allowlist nextline secret
    for text in ("18.52 [18.00, 19.00]", "9.26", "0.0097", "−50%", "3fa9c1d27b40", "real against real", "(floor 500)"):
        assert text in page, text
    assert "chosen: 1000" in page
    assert "1 h 6 min" in page


def test_metric_table_leaves_out_what_is_missing():
    table = numbers.metric_table(RESULT)
    assert [row[0] for row in table.rows] == ["base", "tilted", "real against real (floor)"]
    assert len(table.header) == 6
    assert table.rows[2][3:] == ["–", "–", "–"]
    assert list(table.strong) == [1]
    assert numbers.metric_table({}).rows == []


def test_seed_table_compares_seed_by_seed():
    rows = numbers.seed_table(RESULT).rows
    assert [row[0] for row in rows] == ["seed 0", "seed 1", "mean ± standard deviation"]
    assert rows[0][1:] == ["18.40", "9.10", "−51%"]
    apart = RESULT | {"base": {"fid_per_seed": [10.0, 10.0]}, "tilted": {"fid_per_seed": [5.0, 6.0]}}
    assert numbers.seed_table(apart).rows[-1][2] == "5.50 ± 0.71"


def test_training_curves_take_the_later_of_two_lines_and_sort_them():
    log = [{"iteration": i, "loss": loss} for i, loss in ((1, 9.0), (2, 7.0), (3, 99.0), (2, 5.0), (3, 4.0))]
    log.append({"iteration": 1, "rollback_from": 3.0, "note": "text", "flag": True})
    plots = numbers.training_curves(log)
    assert len(plots) == 1
    assert "from 9 to 4" in plots[0].alt
    assert numbers.training_curves([]) == []


def test_write_page_is_whole_and_creates_its_folder(tmp_path: Path):
    path = write_page(tmp_path / "new" / "page.html", title="t", intro="a\n\nb", sections=[])
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert path.read_text(encoding="utf-8").count("<p>") == 2
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_blocks_refuse_what_does_not_fit():
    with pytest.raises(InputError):
        Table("t", ["a", "b"], [["1"]])
    with pytest.raises(InputError):
        render(title="", intro="", sections=[Section("s", blocks=[Picture(b"not a picture", "x")])])
    with pytest.raises(InputError):
        render(title="", intro="", sections=[Section("s", blocks=[Svg("no drawing", "x")])])


def test_collect_follows_the_chains_of_a_tilted_generator():
    d = samples.collect(FakeTilted(), n=10)
    assert d.tilted is not None
    assert d.trajectory is not None
    assert d.base.shape == d.tilted.shape == (10, 1, 4, 4)
    assert np.allclose(d.tilted - d.base, 1)
    assert d.trajectory.shape == (3, 8, 1, 4, 4)
    assert list(d.steps) == [0, 10, 20]
    assert d.first_energy_step == 1
    plain = samples.collect(FakeGenerator(), n=10)
    assert plain.tilted is None
    assert samples.chain_section(plain) is None


@pytest.mark.parametrize(
    ("parts", "density"),
    [
        ({"energy": 1, "latent_energy": None}, "p(z)·exp(−E(G(z)))/Z"),
        ({"energy": None, "latent_energy": 1}, "p(z)·exp(−E(z))/Z"),
        ({"energy": 1, "latent_energy": 1}, "p(z)·exp(−E(G(z)) − E(z))/Z"),
        ({"energy": 1, "latent_energy": None, "strength": 0.5}, "p(z)·exp(−0.5·E(G(z)))/Z"),
    ],
)
def test_formula_names_the_energies_that_there_are(parts: dict[str, object], density: str):
    assert samples.formula(types.SimpleNamespace(**parts)) == density


def test_evenly_keeps_both_ends():
    assert samples.evenly(51, 11) == list(range(0, 51, 5))
    assert samples.evenly(3, 11) == [0, 1, 2]
    assert samples.evenly(0, 11) == []


@pytest.mark.parametrize(
    "model", [FakeGenerator(), FakeTilted(), FakeGenerator((2,)), FakeTilted((2,)), FakeTilted((7,))]
)
def test_run_report_of_every_kind_of_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model):
    asked = []
    monkeypatch.setattr(hub, "load", lambda path, device: asked.append(device) or model)
    path = run_report.write_run_report(tmp_path, n=16, device="cuda:1", quiet=True)
    assert asked == ["cuda:1"]
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html"
    assert "No evaluation was run yet" in page
    assert "exptilt evaluate" in page
    assert "no training log" in page


def test_run_report_of_a_killed_run_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "run.json").write_text(json.dumps({"config": {"tilt": {"data": "digits"}}}))
    (tmp_path / "log.jsonl").write_text('{"iteration": 10, "loss": NaN}\n{"iteration": 20, "loss": 1.5}\n{"iterat')
    page = run_report.write_run_report(tmp_path, tmp_path / "out.html").read_text(encoding="utf-8")
    assert "There are no samples on this page" in page
    assert "--data digits" in page
    assert "1 line of the log is not readable" in page
    assert "1 non-finite value left out" in page
    assert "out.html" in capsys.readouterr().err


def test_every_figure_of_a_result_has_its_protocol_and_command():
    part = {"fid": 3.0, "fid_ci": [2.5, 3.5], "fid_per_seed": [2.9, 3.1]}
    told = {"n_train": 5, "n_held_out": 4, "base": {"median_ratio": 1.0, "share_below": 0.01}}
    result = {"seeds": [0, 1], "base": part, "tilted": part, "neighbours": told}
    result |= {"protocol": {"hash": "00ff"}, "command": "exptilt evaluate X"}
    sections = run_report.build_sections(None, [], result, None)
    tables = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    assert len(tables) == 3
    assert {(table.protocol, table.command) for table in tables} == {("00ff", "exptilt evaluate X")}


def test_the_likelihood_is_on_the_page_and_a_damaged_one_is_refused(tmp_path: Path):
    tilted = exptilt.TiltedGenerator(Glow(1, size=8, levels=1, steps=1, hidden=4), FirstPixel())
    test = DataSet("noise", "test", torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8), None, "here")
    told = likelihood(tilted, test, method="importance", n=20) | {"command": "exptilt likelihood X"}
    (tmp_path / "likelihood.json").write_text(json.dumps(told))
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "log.jsonl").write_text('{"iteration": 1, "loss": 1.0}\n')
    page = run_report.write_run_report(tmp_path, quiet=True).read_text(encoding="utf-8")
    value, bits = told["log_z"]["value"], told["bits_per_dim"]
    for words in (f"{value:.3f}", f"base {bits['base']:.4f}", "4 test images", "exptilt likelihood X"):
        assert words.replace("-", "−") in page or words in page
    (tmp_path / "likelihood.json").write_text('{"log_z": {"value": 1}, "bits_per_dim": null}')
    with pytest.raises(InputError, match=r"likelihood\.json: is no result"):
        run_report.write_run_report(tmp_path, quiet=True)


class FirstPixel(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0, 0, 0]


def test_the_calibration_of_the_strength_is_a_table_with_the_kept_one_stressed():
    trials = [{"strength": 1.0, "fid": 4.25, "recall": 0.75}, {"strength": 1.6, "fid": 1.5, "recall": 0.5}, "broken"]
    info = {"strength": 1.6, "calibration": trials}
    training = next(s for s in run_report.build_sections(info, [{"iteration": 1}], None, None) if s.title == "Training")
    table = next(block for block in training.blocks if isinstance(block, Table))
    assert list(table.header) == ["λ", "FID ↓", "recall ↑"]
    assert [list(row) for row in table.rows] == [["1", "4.25", "0.75"], ["1.6", "1.5", "0.5"]]
    assert list(table.strong) == [1]


def test_the_calibration_shows_floors_and_longer_chains():
    trials = [{"strength": 1.6, "floor": None, "fid": 4.0}, {"strength": 1.6, "floor": -2.5, "fid": 3.0}]
    info = {"strength": 1.6, "floor": -2.5, "calibration": trials, "before": {"fid": 9.0}, "longer": {"fid": 5.0}}
    training = next(s for s in run_report.build_sections(info, [{"iteration": 1}], None, None) if s.title == "Training")
    table = next(block for block in training.blocks if isinstance(block, Table))
    assert list(table.header) == ["λ", "floor, nats", "FID ↓"]
    assert [list(row) for row in table.rows] == [
        ["1.6", "–", "4"],
        ["1.6", "-2.5", "3"],
        ["before", "–", "9"],
        ["5 × the steps", "–", "5"],
    ]
    assert list(table.strong) == [1]


def test_the_calibration_stresses_the_length_that_was_kept():
    trials = [{"strength": 1.6, "steps": steps, "fid": 4.0} for steps in (600, 1200)]
    info = {"strength": 1.6, "calibration": [*trials, {"fid": 4.0, "steps": 1200}], "sampler": {"steps": 1200}}
    training = next(s for s in run_report.build_sections(info, [{"iteration": 1}], None, None) if s.title == "Training")
    table = next(block for block in training.blocks if isinstance(block, Table))
    assert [list(row) for row in table.rows] == [["600", "4"], ["1,200", "4"], ["1,200", "4"]]
    # Not the one whose strength is not known.
    assert list(table.strong) == [1]


def test_the_calibration_shows_what_was_tilted_beside_the_strengths():
    info = {"strength": 0.0, "calibration": [{"strength": 1.0, "fid": 4.25}], "before": {"fid": 3.5}}
    training = next(s for s in run_report.build_sections(info, [{"iteration": 1}], None, None) if s.title == "Training")
    table = next(block for block in training.blocks if isinstance(block, Table))
    assert [list(row) for row in table.rows] == [["1", "4.25"], ["before", "3.5"]]
    assert list(table.strong) == []


def test_the_calibration_shows_the_diversity_that_was_asked_for():
    trials = [{"strength": 1.0, "fid": 4.25, "recall": 0.75}]
    info = {"strength": 1.0, "calibration": trials, "before": {"fid": 9.0, "recall": 0.8}, "least": {"recall": 0.7}}
    training = next(s for s in run_report.build_sections(info, [{"iteration": 1}], None, None) if s.title == "Training")
    table = next(block for block in training.blocks if isinstance(block, Table))
    assert [list(row) for row in table.rows] == [
        ["1", "4.25", "0.75"],
        ["before", "9", "0.8"],
        ["at least", "–", "0.7"],
    ]


def test_run_report_refuses_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(InputError):
        run_report.write_run_report(tmp_path / "missing")
    with pytest.raises(InputError):
        run_report.write_run_report(tmp_path)


@pytest.mark.browser
def test_page_in_a_browser(tmp_path: Path):
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium on the PATH")
    (tmp_path / "page.html").write_text(full_page(), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=800,1200"]
    command += [f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("L"))
    assert pixels.shape == (1200, 800)
    assert pixels.std() > 5
    assert (pixels[:400] < 100).any(), "the headline is there"

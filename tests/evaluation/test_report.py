"""The report shows the pixels of the stores, takes every text as text, and opens in a browser without a word."""

import base64
import io
import json
import re
from contextlib import suppress
from html.parser import HTMLParser

import numpy as np
import PIL.Image
import pytest
import tifffile

from n2n_pipeline.checkpoint import ModelCard, save_model
from n2n_pipeline.config import NetworkConfig
from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.evaluation.report import facts, write_report
from n2n_pipeline.evaluation.report.gather import gather, read_columns
from n2n_pipeline.evaluation.report.scenes import Region, read_scene
from n2n_pipeline.model import UNet
from n2n_pipeline.pictures import contrast_limits, to_grey
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import References, Shifts, write_movie, write_shifts

SHAPE = (9, 72, 80)
NASTY = "<img src=x onerror=alert(1)>\x1b[31m&'\".mrc"
INFO = MovieInfo(SHAPE, np.dtype("f4"), "mrc", pixel_size=1.5, frame_time=0.05, camera=NASTY, software="SerialEM")


@pytest.fixture(scope="module")
def truth():
    t, y, x = np.mgrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (1 + np.exp(-((y - 30) ** 2 + (x - 20 - 4 * t) ** 2) / 90)).astype(np.float32)


def make_movie(folder, truth):
    """Store counts of 2 per electron, one of whose pixels is broken, that drift by 1 px per frame."""
    counts = (2 * np.random.default_rng(1).poisson(truth)).astype(np.uint16)
    defects = np.zeros(SHAPE[1:], bool)
    defects[40, 40] = True
    counts[:, 40, 40] = 65535
    source = {"kind": "movie", "source": {"name": NASTY, "size_bytes": 12, "sampled_sha256": "ab12"}}
    write_movie(folder / "movie.zarr", counts, INFO, References(defects=defects), source)


def make_run(folder, truth):
    """Leave behind what a finished run leaves."""
    make_movie(folder, truth)
    drift = np.stack([np.arange(9.0), np.zeros(9)], axis=1)
    write_shifts(folder / "movie.zarr", Shifts(drift, np.ones(9)))
    made_of = {
        "kind": "denoised",
        "movie": "../movie.zarr",
        "model": "../model",
        "window": 4,
        "weights_sha256": "cd34",
    }
    write_movie(folder / "denoised.zarr", 2 * truth, INFO, provenance=made_of)
    tifffile.imwrite(folder / "truth.tif", truth)
    scores = [{"window": w, "risk": 1 / w + w / 8, "low": 1 / w, "high": 1 / w + w / 4} for w in (2, 4, 8)]
    fields = [{"y": [0, 32], "x": [0, 32], "window": 2}]
    (folder / "window.json").write_text(json.dumps({"window": 4, "scores": scores, "fields": fields}))
    (folder / "timings.json").write_text(json.dumps({"train": 61.2}))
    (folder / "log.txt").write_text("n2n-pipeline 0.1.0 on host pid 7: run movie.mrc out --steps 9\n")
    model = folder / "model"
    model.mkdir()
    network = NetworkConfig(width=2, depth=1)
    save_model(model, UNet(network), ModelCard(network=network, mean=0, scale=1, window=4, steps=9))
    (model / "config.yaml").write_text("train:\n  steps: 9\n")
    (model / "metrics.csv").write_text("step,training_loss,validation_loss\n4,2.0,\n8,1.5,1.6\n9,1.4,1.5\n")
    ring = {"frequency_per_angstrom": [0.0, 0.1, 0.2], "frc_raw": [None, 0.9, 0.1], "half_bit": [1.0, 0.5, 0.3]}
    metrics = {
        "snr_db": 15.25,
        "truth": "truth.tif",
        "frc": ring | {"r_denoised": [None, 0.95, None], "r_denoised_error": [None, 0.1, None]},
        "verdicts": [
            {"check": "seams", "verdict": "pass", "sentence": "No seams."},
            {"check": "fixed_pattern", "verdict": "fail", "sentence": "</style><script>alert(2)</script>"},
        ],
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, truth):
    return make_run(tmp_path_factory.mktemp("run"), truth)


@pytest.fixture(scope="module")
def page(run):
    return write_report(run / "denoised.zarr").read_text("utf-8")


class Elements(HTMLParser):
    """Every element of a page, and its words."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def decode(source):
    return PIL.Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))


def test_the_page_loads_and_runs_nothing(page):
    parsed = Elements(page)
    policies = [meta for meta in parsed.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert [meta["content"] for meta in policies] == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    ]
    assert {tag for tag, _ in parsed.elements}.isdisjoint({"script", "link", "iframe", "object", "embed", "form"})
    sources = [image["src"] for image in parsed.named("img")] + [part["srcset"] for part in parsed.named("source")]
    assert all(source.startswith("data:image/") for source in sources)
    assert all(image["alt"] for image in parsed.named("img"))
    links = [link["href"] for link in parsed.named("a")]
    assert set(links) == {"#verdicts"}
    assert "http:" not in page
    assert "https:" not in page
    assert "url(" not in page
    assert len(page.encode()) < 5e6


def test_names_and_metadata_are_shown_as_text(page):
    parsed = Elements(page)
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)
    assert "\x1b" not in page
    shown = NASTY.replace("\x1b", "\\x1b")
    assert parsed.text.count(shown) >= 3  # title, heading, camera
    assert "</style><script>alert(2)</script>" in parsed.text


def test_every_stage_is_shown_with_its_own_pixels_and_one_contrast(page, truth):
    shown = {image["alt"].partition(":")[0]: image for image in Elements(page).named("img")}
    limits = contrast_limits(2 * truth[4])
    for label in ("Denoised", "Truth"):
        assert np.array_equal(np.asarray(decode(shown[label]["src"])), to_grey(2 * truth[4], limits))
    assert {"Raw frame", "Window average"} <= shown.keys()
    raw = np.asarray(decode(shown["Raw frame"]["src"])).astype(int)
    assert raw[40, 40] < 255, "a defect must not shine out of the raw frame"


def test_the_verdicts_stand_with_the_worst_first_and_are_counted_on_top(page):
    text = Elements(page).text
    assert text.index("1 fail") < text.index("1 pass") < text.index("Checks")
    assert text.index("Fixed pattern") < text.index("No seams.")


def test_a_truth_brings_its_scores(page):
    assert "15.2 dB" in Elements(page).text


def test_the_page_says_how_to_do_it_again_and_how_long_it_took(page):
    text = Elements(page).text
    assert "n2n-pipeline run movie.mrc out --steps 9" in text
    assert "1 min 1 s" in text
    assert "cd34" in text
    assert "train.steps" in text
    assert "host" not in text


def test_a_finished_run_has_all_plots(page):
    plots = ["Choice of window", "Drift", "Training", "Detail", "Residual", "Intensities"]
    assert [heading for heading in plots if f"<h3>{heading}</h3>" in page] == plots
    assert "Not here yet" not in page


def test_the_same_run_gives_the_same_page(run, page, tmp_path):
    assert write_report(run, tmp_path / "again.html").read_text("utf-8") == page


def test_a_run_that_was_only_ingested_says_what_is_missing(tmp_path, truth):
    make_movie(tmp_path, truth)
    text = Elements(write_report(tmp_path / "denoised.zarr").read_text("utf-8")).text
    assert "not finished: 5 missing" in text
    for part in ("Drift", "choice of window", "network", "checks", "denoised movie"):
        assert part in text.partition("Not here yet")[2]
    assert f"n2n-pipeline align {tmp_path / 'movie.zarr'}" in text


def test_records_that_cannot_be_read_are_said_to_be(tmp_path, truth):
    folder = make_run(tmp_path, truth)
    (folder / "metrics.json").write_text('{"verdicts": [')
    (folder / "window.json").write_text("[]")
    (folder / "model" / "config.yaml").write_text("train: *unknown")
    (folder / "timings.json").write_text("never")
    text = Elements(write_report(folder).read_text("utf-8")).text
    assert "metrics.json cannot be read" in text
    assert "window.json cannot be read: not an object" in text
    assert "config.yaml cannot be read" in text


def test_without_any_store_there_is_nothing_to_report(tmp_path):
    with pytest.raises(InputError, match="no store to report on") as caught:
        write_report(tmp_path / "denoised.zarr")
    assert caught.value.code == ExitCode.NO_INPUT
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_a_movie_is_shown_beside_the_same_part(tmp_path, truth):
    make_movie(tmp_path, truth)
    settings = {"frames": [2, 8], "region": [8, 72, 16, 80]}
    part = 2 * truth[2:8, 8:72, 16:80]
    provenance = {"kind": "denoised", "movie": "../movie.zarr", "window": 4, "settings": settings}
    write_movie(tmp_path / "denoised.zarr", part, provenance=provenance)
    run = gather(tmp_path / "denoised.zarr")
    scene = read_scene(run, 3, Region(slice(0, 64), slice(0, 64)))
    counts = run.movie.read(slice(5, 6), slice(8, 72), slice(16, 80))[0]
    assert np.array_equal(scene.denoised, part[3])
    good = ~run.movie.references.defects[8:72, 16:80]
    assert np.array_equal(scene.raw[good], counts[good])


def test_commands_come_from_the_log_without_the_host(tmp_path):
    log = tmp_path / "log.txt"
    lines = [
        "n2n-pipeline 0.1.0 on node1 pid 5 job 77: ingest a: b.mrc",
        "2026-01-01 10:00:00,000 INFO n2n-pipeline said something: run x",
        "n2n-pipeline 0.1.0 on node1 pid 6: report out.zarr",
        "n2n-pipeline 0.1.0 on node1 pid 7: demo",
    ]
    log.write_text("\n".join(lines))
    assert facts.read_log(log) == ["ingest a: b.mrc", "demo"]


def test_a_table_with_holes_is_read_as_numbers(tmp_path):
    (tmp_path / "m.csv").write_text("step,loss\n1,0.5\n2,\n3,x\n")
    columns = read_columns(tmp_path / "m.csv")
    assert columns["step"] == [1, 2, 3]
    assert columns["loss"][0] == 0.5
    assert np.isnan(columns["loss"][1:]).all()


def test_a_large_noisy_movie_makes_no_larger_page(tmp_path):
    noise = np.random.default_rng(3).normal(size=(24, 560, 600)).astype(np.float32)
    write_movie(tmp_path / "movie.zarr", noise)
    write_movie(tmp_path / "denoised.zarr", noise, provenance={"kind": "denoised", "window": 4})
    report = write_report(tmp_path)
    assert report.stat().st_size < 5e6
    preview = next(image for image in Elements(report.read_text()).named("img") if "loop" in image["alt"])
    assert len(preview["src"]) < 1.5e6
    with decode(preview["src"]) as loop:
        assert loop.n_frames > 4
    assert "The middle 512 × 512 px of 560 × 600 px" in report.read_text()


@pytest.mark.parametrize("shape", [(1, 90, 70), (2, 16, 16), (3, 24, 700)])
def test_montages_and_tiny_and_narrow_movies_have_a_report(tmp_path, shape):
    noise = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    write_movie(tmp_path / "movie.zarr", noise)
    write_movie(tmp_path / "denoised.zarr", noise, provenance={"kind": "denoised", "window": 2})
    parsed = Elements(write_report(tmp_path).read_text("utf-8"))
    assert {"Raw frame", "Denoised"} <= {image["alt"].partition(":")[0] for image in parsed.named("img")}
    assert "not known" in parsed.text  # the pixel size, and so no scale bar
    assert not any(attributes.get("class") == "bar" for _, attributes in parsed.elements)


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_complaint_at_phone_and_desktop_width(run, page, browser, width):
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get((run / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    images = "return [...document.images].map(image => image.decode().then(() => image.naturalWidth))"
    assert all(browser.execute_script(images.replace("return ", "return Promise.all(") + ")"))
    assert browser.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {ask["params"]["request"]["url"] for ask in asked if ask["method"] == "Network.requestWillBeSent"}
    assert {re.match("[a-z]+:", url)[0] for url in urls} == {"file:", "data:"}
    assert len([url for url in urls if url.startswith("file:")]) == 1


@pytest.mark.browser
def test_the_slider_follows_the_pointer_a_click_and_the_arrow_keys(run, page, browser):
    from selenium.common.exceptions import TimeoutException
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    calm = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", calm)
    browser.get((run / "report.html").as_uri())
    slider = browser.find_element(By.CLASS_NAME, "slider")
    size = slider.size["width"]

    def line():
        left = browser.find_element(By.CLASS_NAME, "divider").value_of_css_property("left")
        return float(left.removesuffix("px")) / size

    def wait_for_line_at(part):
        with suppress(TimeoutException):
            WebDriverWait(browser, 10).until(lambda _: abs(line() - part) < 0.015)
        assert line() == pytest.approx(part, abs=0.015)

    wait_for_line_at(0.5)
    pointer = ActionChains(browser, duration=0)
    pointer.move_to_element_with_offset(slider, size * 0.3, 0).perform()
    wait_for_line_at(0.8)
    pointer.click()
    pointer.w3c_actions.pointer_action.move_to_location(5, 5)  # the page's margin, wherever it scrolls to
    pointer.perform()
    wait_for_line_at(0.8)  # a click keeps it there
    pointer.send_keys(Keys.ARROW_LEFT * 5).perform()
    wait_for_line_at(0.7)

"""Stores are served to this machine alone, byte for byte, and to no other page."""

import http.client
import io
import time
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import PIL.Image
import pytest

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.sources.movie import MovieInfo
from n2n_pipeline.store import write_movie
from n2n_pipeline.view import check_address, napari_command, serve, serve_files, with_movie

ORIGIN = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A movie of a moving spot, and a denoised store made of it."""
    folder = tmp_path_factory.mktemp("run")
    t, y, x = np.mgrid[:6, :64, :96]
    spot = np.exp(-((y - 32) ** 2 + (x - 20 - 10 * t) ** 2) / 200).astype(np.float32)
    info = MovieInfo(spot.shape, spot.dtype, "mrc", pixel_size=2.0, frame_time=0.1)
    counts = np.random.default_rng(0).poisson(1 + 5 * spot).astype(np.uint8)
    write_movie(folder / "movie.zarr", counts, info)
    write_movie(folder / "denoised.zarr", spot, info, provenance={"kind": "denoised", "movie": "../movie.zarr"})
    return folder / "movie.zarr", folder / "denoised.zarr"


def get(url, method="GET", **headers):
    """Ask for the path exactly as it is written, which urllib would tidy."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    connection.request(method, parts.path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def test_files_are_served_whole_and_in_ranges(stores):
    shard = next(path for path in (stores[1] / "0/c").rglob("*") if path.is_file())
    content = shard.read_bytes()
    with serve_files({"denoised": stores[1]}, "127.0.0.1", ORIGIN) as url:
        address = f"{url}/denoised/{shard.relative_to(stores[1])}"
        with urlopen(address) as answer:
            assert answer.read() == content
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
        with urlopen(Request(address, headers={"Range": "bytes=4-9"})) as answer:
            assert answer.status == 206
            assert answer.read() == content[4:10]
            assert answer.headers["Content-Range"] == f"bytes 4-9/{len(content)}"
        with urlopen(Request(address, headers={"Range": "bytes=-16"})) as answer:
            assert answer.read() == content[-16:]
        head, body = get(address, "HEAD")
        assert (head.headers["Content-Length"], body) == (str(len(content)), b"")
        refused, _ = get(address, Range=f"bytes={len(content)}-")
        assert refused.status == 416


def test_nothing_outside_the_stores_is_served(stores, tmp_path):
    (tmp_path / "secret").write_text("secret")
    inside = tmp_path / "store.zarr"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "zarr.json").write_text("{}")
    with serve_files({"store": inside}, "127.0.0.1", ORIGIN) as url:
        assert get(f"{url}/store/zarr.json")[0].status == 200
        paths = (
            "store/../secret",
            "store/%2e%2e/secret",
            "store//etc/passwd",
            "store/link",
            "other/zarr.json",
            "store/",
        )
        assert [get(f"{url}/{path}")[0].status for path in paths] == [404] * len(paths)
        guessed = url.rsplit("/", 1)[0]
        assert get(f"{guessed}/{'x' * 32}/store/zarr.json")[0].status == 404


def test_only_loopback_is_bound_unless_told(stores):
    check_address("127.0.0.1", expose=False)
    check_address("localhost", expose=False)
    check_address("0.0.0.0", expose=True)
    with pytest.raises(InputError, match="others on the network could read your data") as caught:
        check_address("0.0.0.0", expose=False)
    assert caught.value.code == ExitCode.REFUSED
    with pytest.raises(InputError, match="others on the network"), serve([stores[0]], address="0.0.0.0"):
        pass


def test_a_lone_denoised_store_is_shown_beside_its_movie(stores):
    assert with_movie([stores[1]]) == list(stores)
    assert with_movie([stores[0]]) == [stores[0]]
    assert with_movie(stores[::-1]) == list(stores[::-1])


def test_the_napari_command_can_be_pasted_whatever_the_name(tmp_path):
    assert napari_command([tmp_path / "a b.zarr"]) == f"napari --plugin napari-ome-zarr '{tmp_path}/a b.zarr'"


def test_without_neuroglancer_the_remedy_is_named(stores, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "neuroglancer", None)
    with pytest.raises(InputError, match=r"pip install 'n2n-pipeline\[view\]'") as caught, serve([stores[0]]):
        pass
    assert caught.value.code == ExitCode.UNAVAILABLE


@pytest.mark.browser
def test_the_viewer_shows_raw_and_denoised_side_by_side(stores, browser):
    pytest.importorskip("neuroglancer")
    with serve([stores[1]]) as viewing:
        assert urlsplit(viewing.url).hostname == "127.0.0.1"
        browser.get(viewing.url)
        until = time.monotonic() + 60
        while time.monotonic() < until and min(spread := _halves(browser)) < 20:
            time.sleep(1)
        assert min(spread) >= 20, "one of the two images never appeared"
        errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert [entry["message"] for entry in errors if "favicon" not in entry["message"]] == []


def _halves(browser):
    """Measure how much the middles of the left and right half of the window vary, in grey levels."""
    with PIL.Image.open(io.BytesIO(browser.get_screenshot_as_png())) as image:
        grey = np.asarray(image.convert("L")).astype(float)
    height, width = grey.shape
    middle = slice(height // 4, 3 * height // 4)
    return [grey[middle, part].std() for part in (slice(50, width // 2 - 50), slice(width // 2 + 50, width - 50))]

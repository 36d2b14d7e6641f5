"""Stores in a viewer: Neuroglancer in the browser, fed from this machine alone, with nothing fetched from the net.

Two servers listen on the loopback address: Neuroglancer's own, with the page, and one with the bytes of stores,
which the page decodes itself. Both answer only under a random token, so that no other page can read the data.
"""

from __future__ import annotations

import ipaddress
import logging
import re
import secrets
import shlex
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from n2n_pipeline.errors import ExitCode, InputError
from n2n_pipeline.pictures import Limits, contrast_limits
from n2n_pipeline.store import MovieStore, open_store

LOOPBACK = "127.0.0.1"
COPY_BYTES = 2**20
PANEL_PX = 600  # of the screen, for a whole frame
PLAYBACK_FPS = 10
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }"


class Viewing(NamedTuple):
    """Where the stores can be looked at while `serve` runs."""

    url: str
    napari: str
    """Command that opens the same stores in napari."""


@contextmanager
def serve(stores: Sequence[Path], address: str = LOOPBACK, expose: bool = False) -> Iterator[Viewing]:
    """Serve stores, side by side, until the block ends.

    Parameters
    ----------
    stores : sequence of Path
        Movie or denoised stores. A single denoised store is shown beside its movie, if that is where it was.
    address : str
        Network address to listen on.
    expose : bool
        Allow an address that other machines can reach.

    Yields
    ------
    Viewing
        Address for a browser, and the command for napari.

    Raises
    ------
    InputError
        If the address is not a loopback one and ``expose`` is False [77], Neuroglancer is not installed [69], or a
        store cannot be opened.
    """
    check_address(address, expose)
    neuroglancer = _import_neuroglancer()
    movies = [open_store(path) for path in with_movie(stores)]
    names = unique_names([movie.path for movie in movies])
    neuroglancer.set_server_bind_address(address)
    viewer = neuroglancer.Viewer()
    viewer_url = str(viewer)
    origin = "{0.scheme}://{0.netloc}".format(urlsplit(viewer_url))
    roots = {name: movie.path for name, movie in zip(names, movies, strict=True)}
    try:
        with serve_files(roots, address, origin) as files_url:
            with viewer.txn() as state:
                _fill_state(neuroglancer, state, dict(zip(names, movies, strict=True)), files_url)
            yield Viewing(viewer_url, napari_command([movie.path for movie in movies]))
    finally:
        neuroglancer.stop()


def check_address(address: str, expose: bool) -> None:
    """Refuse an address that other machines can reach, unless they are meant to."""
    try:
        is_local = ipaddress.ip_address(socket.gethostbyname(address)).is_loopback
    except OSError as error:
        raise InputError(address, "not an address of this machine", code=ExitCode.USAGE) from error
    if not is_local and not expose:
        what = "others on the network could read your data through this address"
        raise InputError(address, what, f"leave it at {LOOPBACK}, or add --expose", ExitCode.REFUSED)


def with_movie(stores: Sequence[Path]) -> list[Path]:
    """Put a lone denoised store's movie before it, if its provenance still leads there."""
    if len(stores) != 1:
        return list(stores)
    movie = open_store(stores[0]).made_from("movie")
    return [stores[0]] if movie is None else [movie, stores[0]]


def unique_names(paths: Sequence[Path]) -> list[str]:
    """Name layers after their stores; several of one name are numbered.

    Examples
    --------
    >>> unique_names([Path("a/movie.zarr"), Path("b/movie.zarr"), Path("b/denoised.zarr")])
    ['movie', 'movie-2', 'denoised']
    """
    names: list[str] = []
    for path in paths:
        earlier = sum(name.split("-")[0] == path.stem for name in names)
        names.append(f"{path.stem}-{earlier + 1}" if earlier else path.stem)
    return names


def napari_command(stores: Sequence[Path]) -> str:
    """Return the command that opens stores in napari, if its plug-in for OME-Zarr is installed."""
    return shlex.join(["napari", "--plugin", "napari-ome-zarr", *map(str, stores)])


def _import_neuroglancer() -> Any:
    # With no handler at the root, neuroglancer adds one that writes every record of this process to stderr.
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        import neuroglancer  # noqa: PLC0415  an extra, for `view` alone
    except ImportError as error:
        todo = "install it: pip install 'n2n-pipeline[view]'"
        raise InputError("view", "needs neuroglancer", todo, ExitCode.UNAVAILABLE) from error
    return neuroglancer


def _fill_state(neuroglancer: Any, state: Any, movies: Mapping[str, MovieStore], files_url: str) -> None:
    """Lay the stores out in a row, in the middle of the first one; the keys ``[`` and ``]`` move through time."""
    first = next(iter(movies.values())).info
    n_frames, height, width = first.shape
    length, time = (first.pixel_size or 1e10) * 1e-10, first.frame_time or 1.0
    metre, second = "m" if first.pixel_size else "", "s" if first.frame_time else ""
    state.dimensions = neuroglancer.CoordinateSpace(
        names=["x", "y", "t"], units=[metre, metre, second], scales=[length, length, time]
    )
    state.display_dimensions = ["x", "y"]
    state.position = [width / 2, height / 2, n_frames // 2 + 0.5]
    state.cross_section_scale = max(height, width) / PANEL_PX
    state.velocity["t"] = neuroglancer.DimensionPlaybackVelocity(
        velocity=PLAYBACK_FPS, at_boundary="loop", paused=True
    )
    state.show_axis_lines = state.show_default_annotations = False
    for name, movie in movies.items():
        state.layers[name] = neuroglancer.ImageLayer(
            source=f"{files_url}/{name}/|zarr3:",
            shader=SHADER,
            shader_controls={"normalized": {"range": list(_middle_limits(movie))}},
        )
    panels = [neuroglancer.LayerGroupViewer(layers=[name], layout="xy") for name in movies]
    state.layout = neuroglancer.row_layout(panels)


def _middle_limits(movie: MovieStore) -> Limits:
    """Choose contrast for a store from the middle of its middle frame."""
    n_frames, height, width = movie.info.shape
    rows = slice(max(height // 2 - 512, 0), height // 2 + 512)
    cols = slice(max(width // 2 - 512, 0), width // 2 + 512)
    middle = slice(n_frames // 2, n_frames // 2 + 1)
    return contrast_limits(movie.read(middle, rows, cols))


@contextmanager
def serve_files(roots: Mapping[str, Path], address: str, origin: str) -> Iterator[str]:
    """Serve the files of some folders to pages of one origin, until the block ends.

    Parameters
    ----------
    roots : mapping
        Name in the URL to folder. Nothing outside these folders is served, whatever links lie in them.
    address : str
        Network address to listen on; the port is a free one.
    origin : str
        Scheme, host and port of the only page whose scripts may read the answers.

    Yields
    ------
    str
        URL under which ``/name/path`` is found; it ends in a secret.
    """
    prefix = f"/{secrets.token_urlsafe(24)}/"
    folders = {name: root.resolve() for name, root in roots.items()}

    class Handler(_StoreHandler):
        pass

    Handler.prefix, Handler.roots, Handler.origin = prefix, folders, origin
    with ThreadingHTTPServer((address, 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{address}:{server.server_port}{prefix.rstrip('/')}"
        finally:
            server.shutdown()
            thread.join()


class _StoreHandler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for files, whole or one range of bytes of them."""

    protocol_version = "HTTP/1.1"
    prefix = ""
    roots: Mapping[str, Path] = {}
    origin = ""

    def do_OPTIONS(self) -> None:
        self.send_response(HTTPStatus.NO_CONTENT)
        self.send_header("Access-Control-Allow-Methods", "GET, HEAD")
        self.send_header("Access-Control-Allow-Headers", "Range")
        self._end_headers(0)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        file = self._find()
        if file is None:
            self.send_response(HTTPStatus.NOT_FOUND)
            self._end_headers(0)
            return
        size = file.stat().st_size
        part = byte_range(self.headers.get("Range"), size)
        if part is None:
            self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
            self.send_header("Content-Range", f"bytes */{size}")
            self._end_headers(0)
            return
        whole = len(part) == size
        self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Accept-Ranges", "bytes")
        if not whole:
            self.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{size}")
        self._end_headers(len(part))
        if with_body:
            with file.open("rb") as handle:
                handle.seek(part.start)
                for start in range(part.start, part.stop, COPY_BYTES):
                    self.wfile.write(handle.read(min(COPY_BYTES, part.stop - start)))

    def _find(self) -> Path | None:
        """Return the file that a URL names, if it lies within one of the stores."""
        path = unquote(urlsplit(self.path).path)
        if not secrets.compare_digest(path[: len(self.prefix)].encode(), self.prefix.encode()):
            return None
        name, _, inner = path[len(self.prefix) :].partition("/")
        root = self.roots.get(name)
        if root is None or "\0" in inner:
            return None
        file = (root / inner).resolve()
        return file if file.is_relative_to(root) and file.is_file() else None

    def _end_headers(self, length: int) -> None:
        self.send_header("Content-Length", str(length))
        self.send_header("Access-Control-Allow-Origin", self.origin)
        self.send_header("Access-Control-Expose-Headers", "Content-Range")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: a line per chunk helps nobody."""


def byte_range(header: str | None, size: int) -> range | None:
    """Read a ``Range`` header of one range; None if no byte of the file satisfies it.

    Examples
    --------
    >>> byte_range("bytes=2-3", 10), byte_range("bytes=8-99", 10), byte_range("bytes=-4", 10)
    (range(2, 4), range(8, 10), range(6, 10))
    >>> byte_range(None, 10), byte_range("bytes=10-", 10)
    (range(0, 10), None)
    """
    match = RANGE.fullmatch(header or "")
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return range(size)  # a header that is not understood is ignored, as HTTP asks
    if not first:
        part = range(max(size - int(last), 0), size)
    else:
        part = range(int(first), min(int(last) + 1, size) if last else size)
    return part or None

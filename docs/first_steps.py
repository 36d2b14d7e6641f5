"""The pipeline from Python, step by step, on a small simulated movie: paste it into a notebook cell by cell.

    python docs/first_steps.py [FOLDER]

A minute on a laptop. The movie and the network are tiny, so that every step can be looked at; for a movie of your
own, give its path to `n2n.ingest` and leave the settings out.
"""

import sys
from pathlib import Path

import n2n_pipeline as n2n
from n2n_pipeline.config import NetworkConfig, RunConfig, TrainConfig
from n2n_pipeline.sources.simulated import simulate_movie

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "first-steps")
folder.mkdir(exist_ok=True)

# %% A movie whose truth is known: vesicles drifting under a camera that counts electrons.
simulated = simulate_movie((24, 96, 96), dose=0.5, drift=(0.4, 0.2), seed=1)
file = simulated.write_mrc(folder / "movie.mrc")

# %% Look at it: an xarray.DataArray over Dask; nothing is read before it is asked for.
movie = n2n.open_movie(file)
print(f"{movie.sizes['t']} frames, {float(movie.mean()):.2f} electrons per pixel in each")

# %% Store the raw counts, follow the drift, choose how many frames to average.
store = n2n.ingest(file, folder / "movie.zarr")
shifts = n2n.align(store)
print(f"last frame: {shifts.dy_dx[-1].round(1).tolist()} px from the first; true {simulated.shifts[-1].tolist()}")
window = n2n.sweep(store)["window"]

# %% What the network learns from: two averages of the same moment that share no frame.
pairs = n2n.pairs(store, window=window)
noise = float((pairs.even - pairs.odd).std()) / 2
print(f"windows of {window} frames; the noise of an average is {noise:.2f} electrons per pixel")

# %% Train, denoise, judge.
settings = RunConfig(
    network=NetworkConfig(width=12, depth=3, fold=2),
    train=TrainConfig(steps=120, patch_px=48, window=window),
)
model = n2n.train([store], folder / "model", settings)
n2n.denoise(store, model, folder / "denoised.zarr")
figures = n2n.evaluate(folder / "denoised.zarr")
for verdict in figures["verdicts"]:
    print(f"{verdict['verdict']:5} {verdict['check']}: {verdict['sentence']}")

# %% The result, again as an xarray.DataArray; here the truth is known, so the error can be seen.
denoised = n2n.open_movie(folder / "denoised.zarr").values
raw_error = float(((movie.values - simulated.truth) ** 2).mean()) ** 0.5
error = float(((denoised - simulated.truth) ** 2).mean()) ** 0.5
print(f"rms error: {raw_error:.3f} electrons per pixel raw, {error:.3f} denoised")

# %% Hand it on.
n2n.report(folder / "denoised.zarr")
n2n.export(folder / "denoised.zarr", folder / "denoised.mrc")
print(f"look at {folder / 'report.html'}")

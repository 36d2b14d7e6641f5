"""From a raw, noisy TEM movie to a denoised, time-resolved OME-Zarr movie by Noise2Noise."""

__version__ = "0.1.0"

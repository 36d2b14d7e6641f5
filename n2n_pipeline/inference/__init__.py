"""Noisy movies in, denoised movies out: tile by tile, shard by shard, in bounded memory."""

"""Whether to believe a denoised movie: figures, verdicts in words, and a report with pictures."""

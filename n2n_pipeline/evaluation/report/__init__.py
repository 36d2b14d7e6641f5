"""The report: one HTML file, complete in itself, made of what a run left on disk."""

from n2n_pipeline.evaluation.report.write import write_report

__all__ = ["write_report"]

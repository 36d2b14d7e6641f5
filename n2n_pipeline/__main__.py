"""``python -m n2n_pipeline`` is the ``n2n-pipeline`` command."""

from n2n_pipeline.cli import main

main(prog_name="n2n-pipeline")

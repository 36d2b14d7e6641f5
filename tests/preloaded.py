"""What the server of `processes` loads and compiles once, so that no command that is forked from it has to."""

import faults  # noqa: F401
import numpy as np
import torch._dynamo  # noqa: F401 - which every optimiser loads

import n2n_pipeline.cli.results
import n2n_pipeline.cli.stages
import n2n_pipeline.evaluation.evaluate
import n2n_pipeline.export.halves
import n2n_pipeline.inference.denoise
import n2n_pipeline.ingest
import n2n_pipeline.training  # noqa: F401
from n2n_pipeline.sliding import slide_halves

slide_halves(np.zeros((4, 4), np.int16), 2, balanced=True, dtype=np.float32)

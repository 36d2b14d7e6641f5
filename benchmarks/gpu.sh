#!/usr/bin/env bash
# All that matters on a machine with a GPU, in under 10 minutes; leaves JSON in benchmarks/results, named _cuda:
#
#     bash benchmarks/gpu.sh
#
# N2N_DEVICE=cpu N2N_TINY=1 runs the same at toy sizes anywhere, to see that it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
device=${N2N_DEVICE:-cuda}
tiny=${N2N_TINY:-}
python -c "import torch, sys; d = torch.device('$device'); torch.zeros(1, device=d); print(torch.cuda.get_device_name() if d.type == 'cuda' else d)"

steps=200 rounds=2 size=
[ -z "$tiny" ] || { steps=2 rounds=1 size=--tiny; }

echo "== training: images a second against the bare network and the student project's loop"
python benchmarks/training.py --device "$device" --steps $steps --rounds $rounds
echo "== stages of a large movie, and the whole command"
python benchmarks/gpu_stages.py --device "$device" $size
echo "== denoising, by the size of a frame"
python benchmarks/scaling.py --device "$device" --parts size --stages denoise --rounds $rounds $size

#!/usr/bin/env bash
# Make virtual environments for the libraries that this package is compared with:
#
#     bash benchmarks/peers.sh FOLDER [NAME...]        # all of them: a minute, 1 GB
#
# Each is in an environment of its own, FOLDER/NAME, which also sees the packages of the Python that makes it (PYTHON;
# by default that of .venv, else the python3 on the PATH), so that all run on one PyTorch, whichever they would bring.
# A second call only checks. A library that cannot be installed is named on stderr, with the reason; the others are made all the same.
set -uo pipefail
folder=${1:?usage: peers.sh FOLDER [NAME...]}
shift
python=${PYTHON:-$(cd "$(dirname "$0")/.." && ls "$PWD/.venv/bin/python" 2>/dev/null || command -v python3)}
torch=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))') || exit 69
here=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# peer NAME "PACKAGES" "BESIDES": packages as they are; besides, what they need that has no say in which PyTorch is used.
peer() {
    local wanted=" $names " environment=$folder/$1 mark="$torch $here $2 $3"
    [[ $wanted == *" $1 "* ]] || return 0
    [ "$(cat "$environment/installed" 2>/dev/null)" = "$mark" ] && return 0
    if ! {
        "$python" -m venv --clear "$environment" &&
            echo "$here" >"$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/this.pth" &&
            echo "torch==$torch" >"$environment/constraints.txt" &&
            "$environment/bin/python" -m pip install --quiet --no-deps $2 &&
            { [ -z "$3" ] || "$environment/bin/python" -m pip install --quiet -c "$environment/constraints.txt" $3; }
    } >"$folder/$1.log" 2>&1; then
        echo "$1 cannot be installed: $(tail -n 1 "$folder/$1.log")" >&2
        failed=69
        return 0
    fi
    echo "$mark" >"$environment/installed"
}

mkdir -p "$folder"
failed=0
names=${*:-topaz careamics monai rosettasciio xarray bm3d}
for name in $names; do
    case $name in topaz | careamics | monai | rosettasciio | xarray | bm3d) ;; *)
        echo "peers.sh: error: $name is none of topaz, careamics, monai, rosettasciio, xarray, bm3d" >&2
        exit 2
        ;;
    esac
done
peer topaz "topaz-em==0.3.20" "tqdm scikit-learn future"
peer careamics "careamics==0.3.5 torchvision" "bioimageio-core<=0.11.0 lightning<=2.6.6 microssim<=0.0.5 torchmetrics<1.9"
peer monai "monai==1.6.1" ""
peer rosettasciio "rosettasciio==0.15.0" "pint python-box>=6,<8,!=7.3.1"
peer xarray "bottleneck==1.6.0" "" # xarray itself is needed here, too
peer bm3d "bm3d==4.0.3" "bm4d"
exit $failed

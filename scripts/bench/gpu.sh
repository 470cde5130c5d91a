#!/bin/bash
# Measure on a GPU for the first time, within 8 minutes: scores and epochs in three
# precisions, memory, the comparison with plain JAX and, if it is installed, PyTorch, the fast
# recipe of poster, and a small poster study. Needs CIFAR-10 for the studies.
#
#     scripts/bench/gpu.sh [--minutes M] [--try] FOLDER [arguments of scripts/study.py run]
#
# FOLDER receives a JSON file and a log of each step, and the runs of the study. What takes too
# long is stopped, and what it has measured so far is in its file. The same command again skips
# the steps that are complete and continues the study. --try tests the script on a CPU, with
# tiny networks and the study of digits: what it measures then means nothing.
#
# Exit code: 0 if all is complete, 75 if there was too little time, 1 if a step failed, and 2 if
# it could not start.
set -u
fail() {
    echo "error: $*" >&2
    exit 2
}

minutes=8 trying=
while [[ ${1:-} == --* ]]; do
    case $1 in
        --minutes) minutes=${2:-} && shift ;;
        --try) trying=1 ;;
        *) fail "$1 is unknown before the folder. Pass --minutes M or --try." ;;
    esac
    shift
done
[[ $minutes =~ ^(0|[1-9][0-9]*)$ ]] || fail "--minutes is a whole number; got '$minutes'. Pass 8."
[ $# -gt 0 ] || fail "no folder for the results. Run: scripts/bench/gpu.sh FOLDER"
folder=$1
shift
mkdir -p -- "$folder" 2> /dev/null ||
    fail "$folder can't be made. Pass a folder that can be written."
scripts=$(dirname "$0")/..
failed=0 late=0

step() { # name, most seconds, seconds to leave, command
    local name=$1 limit=$((minutes * 60 - SECONDS - 15 - $3)) start=$SECONDS code
    local log=$folder/$name.log
    [ $limit -le "$2" ] || limit=$2
    shift 3
    if [ -e "$folder/$name.done" ]; then
        echo "$name: complete"
        return
    elif [ $limit -lt 10 ]; then
        echo "$name: no time is left"
        late=1
        return
    fi
    timeout --foreground --signal=INT --kill-after=10 $limit "$@" > "$log" 2>&1
    code=$?
    case $code in
        0)
            touch "$folder/$name.done"
            echo "$name: $((SECONDS - start)) s"
            ;;
        124 | 137)
            echo "$name: stopped after $((SECONDS - start)) s"
            late=1
            ;;
        *)
            echo "$name: failed after $((SECONDS - start)) s: $(tail -n 1 "$log")" >&2
            failed=1
            ;;
    esac
}

bench() { # name, most seconds, arguments of scripts/bench
    step "$1" "$2" 0 python3 "$scripts/bench" "${@:3}" --json "$folder/$1.json"
}

trap 'exit 130' INT
backend=$(python3 -c 'import jax; print(jax.default_backend())' 2> "$folder/jax.log") ||
    fail "JAX does not start: $(tail -n 1 "$folder/jax.log")"
if [ $trying ]; then
    epoch=(--precisions float32 --batch-sizes 2 --examples 4 --width 0.05 --repeats 1)
    epoch+=(--scores select)
    memory=(--batch 4 --examples 8 --width 0.05)
    compare=(--only select --repeats 1)
    compare_long=()
    study=(digits --only method=snip c=1 --epochs-scale 0.125 --width 0.1)
    networks=()
    needs="pass"
elif [ "$backend" = cpu ]; then
    fail "JAX sees no accelerator on this machine. Install the extra cuda, or pass --try to" \
        "test this script on a CPU."
else
    epoch=(--batch-sizes 256 --repeats 2)
    memory=()
    compare=(--only snip grasp synflow_1 select train_step evaluate --repeats 3)
    compare_long=(--only imp_level cold_start synflow_100 --repeats 3)
    # All networks are trained before the first is measured, so that accuracies come first.
    study=(poster --recipe as_run --epochs-scale 0.1 --only c=0,1)
    networks=(resnet50_nnx vgg16 gpt_nnx)
    needs="import importlib.util as u"
    needs+="; assert not u.find_spec('torch') or __import__('torch').cuda.is_available()"
    command -v nvidia-smi > /dev/null &&
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
fi

bench epoch 150 epoch "${epoch[@]}"
bench memory 90 memory "${memory[@]}"
compares=
if python3 -c "$needs" 2> /dev/null; then
    compares=1
    bench compare 150 compare "${compare[@]}"
else
    echo "compare: left out, as PyTorch is installed and sees no GPU"
fi
if [ -z $trying ]; then
    step fast 90 0 python3 "$scripts/study.py" run poster --recipe fast --only c=0 \
        --runs-dir "$folder/runs" "$@"
fi
step study 480 25 python3 "$scripts/study.py" run "${study[@]}" --runs-dir "$folder/runs" "$@"
if [ -e "$folder/runs" ] && [ ! -e "$folder/study.done" ]; then # stopped without its report
    report=("${study[0]}")
    [ "${study[1]}" != --recipe ] || report+=("${study[@]:1:2}")
    step report 30 0 python3 "$scripts/study.py" report "${report[@]}" --runs-dir "$folder/runs"
    rm -f "$folder/report.done"
fi
if [ $compares ] && [ ${#compare_long[@]} -gt 0 ]; then
    bench compare_long 300 compare "${compare_long[@]}"
fi
for network in "${networks[@]}"; do
    bench "channels_$network" 100 channels "$network" --densities 0.5 --batch 64 256 --calls 20
done
[ $failed -eq 0 ] || exit 1
[ $late -eq 0 ] || exit 75

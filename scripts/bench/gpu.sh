#!/bin/bash
# Run the benchmarks of a GPU in 6 to 17 minutes. Needs the extra `bench`, and CIFAR-10.
#
#     scripts/bench/gpu.sh FOLDER [arguments of scripts/study.py run, such as --data-dir DIR]
#
# FOLDER receives a JSON file and a log of each measurement, and the runs of a small poster
# study and of the dense network of its recipe `fast`, which the same command resumes. A
# measurement that fails or takes too long leaves its log, and the next one starts.
set -u
if [ $# -eq 0 ]; then
    echo "error: no folder for the results. Run: scripts/bench/gpu.sh FOLDER" >&2
    exit 2
fi
folder=$1
shift
mkdir -p "$folder" || exit 2
scripts=$(dirname "$0")/..
failed=0

measure() { # name, most seconds, command
    local name=$1 most=$2 start=$SECONDS
    shift 2
    if timeout --foreground --signal=INT --kill-after=20 "$most" "$@" > "$folder/$name.log" 2>&1; then
        echo "$name: $((SECONDS - start)) s"
    else
        echo "$name: failed after $((SECONDS - start)) s; see $folder/$name.log" >&2
        failed=1
    fi
}

bench() { # name, most seconds, arguments of scripts/bench
    measure "$1" "$2" python3 "$scripts/bench" "${@:3}" --json "$folder/$1.json"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
bench epoch 150 epoch --batch-sizes 256 --repeats 2
bench compare 240 compare --only snip grasp synflow_1 synflow_100 select train_step evaluate
for network in resnet50_nnx vgg16 gpt_nnx; do
    bench "channels_$network" 100 channels "$network" --densities 0.5 --batch 64 256 --calls 20
done
measure fast 120 python3 "$scripts/study.py" run poster --recipe fast --only c=0 \
    --runs-dir "$folder/runs" "$@"
measure poster 240 python3 "$scripts/study.py" run poster --recipe as_run --epochs-scale 0.1 \
    --only c=1 --runs-dir "$folder/runs" "$@"
exit $failed

#!/bin/bash
# Run a study in slices of some minutes through one file, each on another machine if need be.
#
#     scripts/slice.sh [--minutes M] ARCHIVE STUDY [other arguments of scripts/study.py run]
#     while scripts/slice.sh poster.zip poster --recipe as_run; [ $? -eq 75 ]; do :; done
#
# Continues the study in the folder ARCHIVE.runs, which is unpacked from ARCHIVE where it is
# not there, stops it in time, and packs it into ARCHIVE. An archive is replaced as a whole or
# not at all, and holds no weights of finished cells. A slice takes 8 minutes unless --minutes
# says otherwise; a stage that takes longer never finishes. Run one slice at a time.
#
# Exit code: 0 if the study is complete, 75 if another slice is needed, and otherwise that of
# the study, or 2.
set -u
usage="scripts/slice.sh [--minutes M] ARCHIVE STUDY [arguments of scripts/study.py run]"
fail() {
    echo "error: $*" >&2
    exit 2
}

minutes=8
if [ "${1:-}" = --minutes ] && [ $# -ge 2 ]; then
    minutes=$2
    shift 2
fi
[[ $minutes =~ ^[1-9][0-9]*$ ]] || fail "--minutes is a whole number; got $minutes. Pass 8."
[[ ${1:-} != --* ]] || fail "$1 is unknown before the archive. Pass --minutes M, or run: $usage"
[ $# -ge 2 ] || fail "an archive and a study are needed. Run: $usage"
archive=$1 runs=$1.runs
[ ! -d "$archive" ] || fail "$archive is a folder. Pass the name of a file, which need not exist."
[ -d "$(dirname -- "$archive")" ] || fail "there is no folder for $archive. Create it, or pass" \
    "another file."
shift
run=(python3 "$(dirname "$0")/study.py" run "$@" --runs-dir "$runs")
count() { # finished stages, and records of cells
    find "$runs" \( -name stage.json -o -name record.json \) 2> /dev/null | wc -l
}

if [ -e "$runs" ] && [ "$archive" -nt "$runs" ]; then
    fail "$archive is newer than $runs. Delete the folder to continue from the archive, or" \
        "the archive to continue from the folder."
elif [ ! -e "$runs" ] && [ -e "$archive" ]; then
    rm -rf "$runs.part"
    if ! reason=$(python3 -m zipfile -e "$archive" "$runs.part" 2>&1); then
        rm -rf "$runs.part"
        fail "$archive can't be unpacked (${reason##*$'\n'}). It is left as it is. Copy it" \
            "again, free disk space, or pass another file to start the study from its beginning."
    fi
    mv "$runs.part" "$runs" || exit 2
fi
mkdir -p -- "$runs" 2> /dev/null || fail "$runs can't be created. Pass an archive in a folder that" \
    "can be written."
touch "$runs"
before=$(count)

# Compiled programs travel too, the newest 300 MB.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$(realpath "$runs")/xla}
export JAX_COMPILATION_CACHE_MAX_SIZE=${JAX_COMPILATION_CACHE_MAX_SIZE:-300000000}

# 20 s to stop, and the time to pack: 20 s, and 10 for each GB that there was.
megabytes=$(du -sm "$runs" | cut -f1)
limit=$((minutes * 60 - SECONDS - 40 - megabytes / 100))
[ $limit -ge 10 ] || fail "$minutes minutes leave no time to run the study, beside the time to" \
    "unpack and pack $megabytes MB. Pass more --minutes."
stop=$((SECONDS + limit)) study=
trap 'kill "$study" 2> /dev/null' INT TERM HUP # batch systems may signal this script alone
timeout --foreground --signal=INT --kill-after=20 $limit "${run[@]}" &
study=$!
# A signal interrupts `wait`: it is repeated until the study has stopped.
while true; do
    wait $study
    code=$?
    kill -0 $study 2> /dev/null || break
done
if [ $code -eq 124 ] || { [ $code -eq 137 ] && [ $SECONDS -ge $stop ]; }; then
    code=75
fi
if [ $code -ne 0 ] && [ "$(count)" -eq "$before" ]; then
    [ $code -ne 75 ] || fail "no stage was finished in $limit seconds, so that another slice" \
        "would not finish one either. Pass more --minutes."
    exit $code # the study has said why
fi
"${run[@]}" --pack "$archive" || fail "$archive is as it was before, and the results of this" \
    "slice are in $runs. Run the same command again."
touch "$runs"
[ $code -ne 75 ] || echo "another slice is needed"
exit $code

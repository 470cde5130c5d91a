#!/bin/bash
# Stands in for python3 of scripts/slice.sh: a study that finishes the stage $STAGE, if any,
# and then ends with exit code $CODE, or runs until it is stopped if that is "never".
echo "$*" >> "$CALLS"
runs=$PWD/runs.zip.runs
case "$*" in
    "-m zipfile"*) exec "$PYTHON" "$@" ;;
    *--pack*)
        [ "$PACKS" ] || exit 2
        rm -f runs.zip
        cd "$runs" && "$PYTHON" -m zipfile -c ../runs.zip tiny
        ;;
    *)
        if [ "$STAGE" ]; then
            mkdir -p "$runs/tiny/stages/$STAGE"
            echo '{}' > "$runs/tiny/stages/$STAGE/stage.json"
        fi
        [ "$CODE" != never ] || exec sleep 600
        exit "$CODE"
        ;;
esac

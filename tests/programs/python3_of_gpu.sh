#!/bin/bash
# Stands in for python3 of scripts/bench/gpu.sh: writes down its arguments, and ends as asked.
echo "$*" >> "$CALLS"
case "$*" in
    *default_backend*) echo "$BACKEND" ;;
    *find_spec*) exit "$TORCH_WITHOUT_GPU" ;;
    *"$STOPPED"*) exit 124 ;; # as timeout ends
    *"$FAILING"*)
        printf 'first line\nerror: no such device\n'
        exit 1
        ;;
esac

#!/bin/sh
# Creates .env from .env.example, with a random secret for every value `generated`. Does not touch an existing .env.
set -eu
cd "$(dirname "$0")/.."
target="${1:-.env}"
if [ -e "$target" ]; then
    echo "$target already exists; it was not changed." >&2
    exit 1
fi
umask 077
while IFS= read -r line; do
    case "$line" in
        *=generated) printf '%s=%s\n' "${line%%=*}" "$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n')" ;;
        *) printf '%s\n' "$line" ;;
    esac
done < .env.example > "$target"
echo "Wrote $target."

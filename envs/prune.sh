#!/usr/bin/env bash
# List the files under results/ and logs/ that none of the given targets makes or uses and that
# git does not track, and delete them after a yes (or with YES=1). Not benchmarks/: Snakemake
# calls all of them untracked.
set -euo pipefail
cd "$(dirname "$0")/.."

listing="$(snakemake "$@" --list-untracked 2>&1)" || {
    printf '%s\n' "$listing" >&2
    exit 1
}
files=()
while IFS= read -r file; do
    if [[ -f $file ]] && ! git ls-files --error-unmatch "$file" >/dev/null 2>&1; then
        files+=("$file")
    fi
done < <(grep -E '^(results|logs)/' <<< "$listing" || true)

if [[ ${#files[@]} -eq 0 ]]; then
    echo "prune: nothing to remove"
    exit 0
fi
printf '%s\n' "${files[@]}"
if [[ ${YES:-} != 1 ]]; then
    answer=no
    read -r -p "Remove these ${#files[@]} files? [y/N] " answer || true
    [[ $answer == [yY] || $answer == yes ]] || { echo "prune: nothing removed"; exit 0; }
fi
rm -- "${files[@]}"
find results logs -type d -empty -delete 2>/dev/null || true
echo "prune: removed ${#files[@]} files"

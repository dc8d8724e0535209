#!/usr/bin/env bash
# docker/pin.sh: updates the digest of each pinned image in docker/ to the current digest of its tag in the registry.
#
# Needs Docker with buildx and access to the registries. Review the changes, and run `make docker` before you commit them.
set -euo pipefail
cd "$(dirname "$0")"

pinned='[a-z0-9][a-z0-9./_-]*:[A-Za-z0-9._-]+@sha256:[0-9a-f]{64}'
grep --recursive --no-filename --only-matching --extended-regexp "$pinned" . | sort --unique | while IFS= read -r image; do
  tag=${image%@*}
  digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$tag")
  [[ $digest =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "docker/pin.sh: no digest for $tag: $digest" >&2; exit 1; }
  echo "$tag@$digest"
  grep --recursive --files-with-matches --fixed-strings "$image" . | xargs sed --in-place "s|$image|$tag@$digest|"
done

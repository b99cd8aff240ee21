#!/usr/bin/env bash
# Proves the Dockerfiles where there is no container engine and no registry, with buildah alone
# (Debian: apt-get install buildah mmdebstrap docker-registry; as root). Builds both images of the
# last commit in chroot isolation, pushes them to a registry on this machine, and runs a small chain
# inside of the images that came back from it by digest: prepare in one, a trial, export and
# evaluation in the other.
#
#     images/prove.sh                    builds on a Debian base made here; with torch for CPUs
#     BASE=IMAGE PIP_CONF=FILE OPTIONS="--build-option=..." images/prove.sh
#
# PIP_CONF is a pip.conf with the index that has torch's CPU wheel. OPTIONS go to `python -m
# images.build`.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
registry=""
containers=()
finish() {
    for one in "${containers[@]}"; do buildah rm "$one" >/dev/null || true; done
    if [ -f "$work/registries.conf" ]; then buildah images --quiet --filter "reference=127.0.0.1:$port/jec/*" | xargs -r buildah rmi --force >/dev/null || true; fi
    if [ -n "$registry" ]; then kill "$registry" || true; fi
    rm -rf "$work"
}
trap finish EXIT
step() { printf '\n== %s\n' "$*"; }

step "base"
base=${BASE:-localhost/jec-base:bookworm}
if [ -z "${BASE:-}" ] && ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    mmdebstrap --quiet --variant=minbase --include=ca-certificates bookworm "$work/base.tar"
    printf 'FROM scratch\nADD base.tar /\n' >"$work/Containerfile"
    buildah build --isolation chroot --tag "$base" --file "$work/Containerfile" "$work" >/dev/null
fi
echo "$base"

step "registry"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$work/registry.yml" <<YAML
version: 0.1
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: "127.0.0.1:$port"}
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
printf '[[registry]]\nlocation = "127.0.0.1:%s"\ninsecure = true\n' "$port" >"$work/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$work/registries.conf
echo "127.0.0.1:$port"

step "build and push"
git clone --quiet . "$work/checkout"
# shellcheck disable=SC2086  # OPTIONS are several words
(cd "$work/checkout" && python3 -m images.build --engine buildah --registry "127.0.0.1:$port/jec" --torch cpu \
    --steps-base "$base" --weaver-base "$base" --build-option=--isolation=chroot ${PIP_CONF:+--pip-conf "$PIP_CONF"} ${OPTIONS:-}) \
    >"$work/build.log" 2>&1 || { tail -30 "$work/build.log"; exit 1; }
tail -3 "$work/build.log"
buildah images | grep "127.0.0.1:$port"
cat "$work/checkout/images/digests.json"

step "the images that the registry gives back"
image() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["images"][sys.argv[2]])' "$work/checkout/images/digests.json" "$1"; }
steps=$(buildah from --isolation chroot --quiet --pull-always "$(image steps)") && containers+=("$steps")
weaver=$(buildah from --isolation chroot --quiet --pull-always "$(image weaver)") && containers+=("$weaver")
mkdir "$work/data" && chown 1000:1000 "$work/data"
inside() { local container=$1; shift; buildah run --isolation chroot --volume "$work/data:/data" "$container" -- "$@"; }
for container in "$steps" "$weaver"; do
    inside "$container" sh -c 'test "$(id -u):$(id -g)" = 1000:1000 && test ! -w /opt/jec && klist -V && python --version'
    buildah inspect --format '{{index .OCIv1.Config.Labels "org.opencontainers.image.revision"}} {{.OCIv1.Config.User}}' "$container"
    echo
done
if inside "$steps" python -c 'import torch' 2>/dev/null; then echo "the steps' image has torch"; exit 1; fi

step "prepare, in the steps' image"
run=/data/runs/proof-00000001
inside "$steps" python -m components.prepare --run-id proof-00000001 --s3-bucket /data/runs --sample-jets 2000 --num-epochs 1
step "a trial, export and evaluation, in the training's image"
inside "$weaver" python -m weaver.train --data-train $run/data/train.json --data-val $run/data/val.json --data-config $run/config/data.yaml \
    --network-config $run/config/network.py --model-prefix $run/trials/one/ --metrics-log /var/log/katib/metrics.log \
    --num-epochs 1 --batch-size 500 --regression-mode --gpus auto
inside "$weaver" python -m exporting.export --run $run --trial one --name proof
inside "$weaver" python -m evaluating.evaluate --run $run --trial one --name proof
ls -l "$work/data/runs/proof-00000001/model/proof/1/model.onnx" "$work/data/runs/proof-00000001/report.html"
step "done"

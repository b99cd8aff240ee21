# Training, export and evaluation: the pods of the search's trials and of the jobs after it, and the
# jobs of REANA, which run the steps themselves.
#
#     make images REGISTRY=registry/project                          for GPUs
#     make images REGISTRY=registry/project ARGS="--torch cpu"       for a cluster without any
#
# TORCH names the lock that torch comes from: images/torch-TORCH.lock. The CUDA build brings its own
# CUDA libraries in wheels, so of NVIDIA's images the small `base` is enough (`runtime` would hold
# cuBLAS and the rest a second time); its CUDA version is the oldest that the node's driver must
# support. BASE is any Debian or Ubuntu image, as in steps.Dockerfile.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/venv/bin:$PATH
# The Kerberos client is for data on EOS. libgomp is what torch's CPU kernels run their threads
# with. Versions of Debian's packages are those of the base's release, with its security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates krb5-user libgomp1 \
    && { python3 -m ensurepip --version >/dev/null 2>&1 || apt-get install -y --no-install-recommends python3 python3-venv; } \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
COPY images/krb5.conf /etc/krb5.conf

# A numeric user, so that runAsNonRoot can be checked. Katib mounts a volume at the metrics' folder;
# other jobs write there too.
RUN mkdir -p /etc/krb5.conf.d /home/jec /var/log/katib \
    && { getent passwd 1000 >/dev/null || useradd --uid 1000 --user-group --no-create-home --home-dir /home/jec jec; } \
    && chown 1000:1000 /home/jec /var/log/katib

# torch is by far the largest layer and changes least; then the other packages; then the project.
ARG TORCH=cuda
COPY images/torch-${TORCH}.lock /opt/torch.lock
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --disable-pip-version-check \
        --no-deps --require-hashes --only-binary :all: -r /opt/torch.lock
COPY images/weaver.lock /opt/weaver.lock
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --disable-pip-version-check \
        --no-deps --require-hashes --only-binary :all: -r /opt/weaver.lock \
    && pip check

WORKDIR /opt/jec
COPY common common
COPY clients/python/jec_client jec_client
COPY clusters clusters
COPY components components
COPY reporting reporting
COPY serving serving
COPY evaluating evaluating
COPY exporting exporting
COPY networks networks
COPY physics physics
COPY training training
COPY weaver weaver
RUN python -m compileall -q -j 0 .

ENV PYTHONPATH=/opt/jec \
    PYTHONUNBUFFERED=1 \
    HOME=/home/jec \
    MPLCONFIGDIR=/home/jec/.matplotlib \
    DEBIAN_FRONTEND=
USER 1000:1000

# Last, because they change with every commit: all layers above stay in the cache.
ARG COMMIT=unknown
ARG CREATED=1970-01-01T00:00:00Z
ENV JEC_GIT_COMMIT=${COMMIT}
LABEL org.opencontainers.image.title="jec-weaver" \
      org.opencontainers.image.description="Training, export and evaluation of the JEC pipeline" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}"
CMD ["python", "-m", "weaver.train", "--help"]

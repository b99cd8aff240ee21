# The pipeline's steps: prepare decodes the data; search, export, evaluate and deploy watch the
# cluster. No torch.
#
#     make images REGISTRY=registry/project          builds this, images/weaver.Dockerfile, pushes both, notes their digests
#
# BASE is any Debian or Ubuntu image; where it has no Python 3.11 or 3.12, the distribution's own is
# installed. Pin it by digest: BASE=python:3.11-slim-bookworm@sha256:...  Needs BuildKit (docker),
# podman 4 or buildah 1.24. A pip.conf with the index of the site may be given as the build secret
# `pip`; it stays out of the image.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/venv/bin:$PATH
# The Kerberos client is for data on EOS: kinit renews the ticket (deploy/eos), klist tells whether
# it is still valid. Versions of Debian's packages are those of the base's release, with its
# security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates krb5-user \
    && { python3 -m ensurepip --version >/dev/null 2>&1 || apt-get install -y --no-install-recommends python3 python3-venv; } \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
COPY images/krb5.conf /etc/krb5.conf

# A numeric user, so that runAsNonRoot can be checked. KFP's launcher runs as the same user and
# makes folders for artifacts below /s3, /minio or /gcs, which it could not do in /
# (kubeflow/pipelines#10397).
RUN mkdir -p /etc/krb5.conf.d /home/jec /s3 /minio /gcs \
    && { getent passwd 1000 >/dev/null || useradd --uid 1000 --user-group --no-create-home --home-dir /home/jec jec; } \
    && chown 1000:1000 /home/jec /s3 /minio /gcs

COPY images/steps.lock /opt/steps.lock
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-cache-dir --disable-pip-version-check \
        --no-deps --require-hashes --only-binary :all: -r /opt/steps.lock \
    && pip check

WORKDIR /opt/jec
COPY networks networks
COPY common common
COPY clients/python/jec_client jec_client
COPY clusters clusters
COPY physics physics
COPY reporting reporting
COPY serving serving
COPY evaluating evaluating
COPY exporting exporting
COPY training training
COPY weaver weaver
COPY data data
COPY components components
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
LABEL org.opencontainers.image.title="jec-steps" \
      org.opencontainers.image.description="Steps of the JEC pipeline" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}"
CMD ["python", "-m", "components.prepare", "--help"]

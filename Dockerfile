# hadolint global ignore=DL3013
# (versions are those of constraints.txt)
#
# Two images: `client` for everything that runs no model (migrate, beat, deliver, runner, flower, the command line), and
# `worker`, with torch for CPUs unless TORCH_INDEX says otherwise:
#   docker build --target client --tag batchmill-client:0.1.0 .
#   docker build --target worker --tag batchmill-worker:0.1.0 .
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 --tag batchmill-worker-cuda:0.1.0 .

FROM python:3.13.9-slim-bookworm AS build
# What else to install, as s3fs for artifacts at s3://….
ARG PACKAGES=""
# Every package comes as a wheel: nothing is compiled, here or later. The constraints hold for the build backend too.
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_ONLY_BINARY=:all: PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/batchmill
ENV PATH=/opt/batchmill/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY contracts contracts
COPY storage storage
COPY producer producer
COPY worker worker
COPY stack stack
COPY migrations migrations
# PACKAGES is a list of words.
# hadolint ignore=SC2086
RUN --mount=type=cache,target=/root/.cache/pip pip install '.[flower,otel,reports]' ${PACKAGES}

FROM build AS build-worker
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Torch alone comes from there; what it needs comes with the rest, from the usual index.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --index-url "${TORCH_INDEX}" "$(grep '^torch==' constraints.txt)" \
    && pip install '.[worker]'

FROM python:3.13.9-slim-bookworm AS base
LABEL org.opencontainers.image.title="batchmill" \
      org.opencontainers.image.description="Offline inference on a message queue" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"
RUN groupadd --gid 10001 batchmill \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/batchmill --shell /usr/sbin/nologin batchmill \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/batchmill /artifacts
ENV PATH=/opt/batchmill/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BATCHMILL_HOME=/var/lib/batchmill
WORKDIR /var/lib/batchmill
USER 10001:10001

FROM base AS worker
COPY --from=build-worker /opt/batchmill /opt/batchmill
ENV BATCHMILL_METRICS_PORT=9108
EXPOSE 9108
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:9108/readyz', timeout=5)"]
CMD ["batchmill", "worker"]

FROM base AS client
COPY --from=build /opt/batchmill /opt/batchmill
HEALTHCHECK --interval=60s --timeout=20s --start-period=30s CMD ["batchmill", "doctor"]
CMD ["batchmill", "--help"]

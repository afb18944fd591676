# syntax=docker/dockerfile:1
# The daemon for x86-64 machines with an NVIDIA GPU:   docker build -t vlad .
# The client command, small and without CUDA:          docker build -t vlad-client --target client .
# Jetsons:                                             docker buildx bake server-thor   (or server-orin)
#
# torch brings its own CUDA libraries, so the base images only have to fit the driver. The build image has
# nvcc, because pycuda is compiled; the runtime image has the CUDA libraries that it is linked with.
ARG BUILD_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG BASE_IMAGE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
ARG CLIENT_BASE_IMAGE=python:3.12-slim

FROM ${BUILD_IMAGE} AS build
# EXTRAS="" leaves TensorRT and pycuda out; BUILD_IMAGE may then be the same as BASE_IMAGE.
ARG EXTRAS="tensorrt,record"
# Where torch comes from if not from PyPI: Jetsons before JetPack 7 need NVIDIA's own builds.
ARG TORCH_INDEX=""
# --system-site-packages where the base image brings TensorRT's bindings along.
ARG VENV_OPTIONS=""
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
       build-essential python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE CHANGELOG.md /src/
COPY configs /src/configs
COPY engines /src/engines
COPY server /src/server
COPY deploy/container /container
RUN TORCH_INDEX="${TORCH_INDEX}" VENV_OPTIONS="${VENV_OPTIONS}" sh /container/install.sh /venv /src "${EXTRAS}"

FROM ${BASE_IMAGE} AS server
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --create-home --uid 10001 vlad \
    && install --directory --owner vlad /app /app/policy_records /openpi_assets /var/cache/vlad
COPY --from=build /venv /venv
COPY --from=build /container /container
# Whatever is written goes to the cache, so that the rest of the file system may be read-only.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OPENPI_DATA_HOME=/openpi_assets \
    VLAD_CACHE_DIR=/var/cache/vlad \
    TRITON_CACHE_DIR=/var/cache/vlad/triton \
    CUDA_CACHE_PATH=/var/cache/vlad/cuda \
    SERVER_ARGS=""
USER 10001
# --policy.dir ./checkpoints/... and the recordings of --record are relative to this.
WORKDIR /app
VOLUME ["/var/cache/vlad", "/app/policy_records"]
EXPOSE 8000 9100
STOPSIGNAL SIGTERM
# The start period covers loading a checkpoint; a probe that succeeds ends it.
HEALTHCHECK --interval=5s --timeout=6s --start-period=15m --retries=3 \
    CMD ["python", "/container/healthcheck.py"]
# SERVER_ARGS is split into words like a shell would: serve_policy --host 0.0.0.0 $SERVER_ARGS
CMD ["python", "/container/entrypoint.py", "SERVER_ARGS", "serve_policy", "--host", "0.0.0.0"]

FROM ${CLIENT_BASE_IMAGE} AS client
COPY clients /src/clients
COPY deploy/container/entrypoint.py /container/entrypoint.py
RUN pip install --no-cache-dir --disable-pip-version-check /src/clients \
    && useradd --system --create-home --uid 10001 vlad
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 CLIENT_ARGS=""
USER 10001
CMD ["python", "/container/entrypoint.py", "CLIENT_ARGS", "simple_client", "--host", "127.0.0.1"]

FROM server

# syntax=docker/dockerfile:1
# Five images from one file:
#   api         HTTP; no numerical libraries
#   operator    `python -m catalog`, with pg_dump and pg_restore for backups
#   worker-io   inspections and webhooks; ONNX Runtime, no torch (torch uploads then answer `torch_missing`)
#   worker-cpu  queues cpu and io; torch
#   worker-gpu  queue gpu; torch with CUDA, and ONNX Runtime's CUDA provider
# Each is a virtual environment on a slim Python; what built it stays behind. They run as user 10001, write to
# /var/lib/levity and /tmp alone, and so take a read-only root file system.
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
# Where pip looks for packages; empty means pip's own default. pip reads these names from the environment.
ARG PIP_INDEX_URL=""
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/levity/bin:$PATH
WORKDIR /src
RUN python -m venv /opt/levity
COPY pyproject.toml constraints.txt README.md LICENSE ./

FROM build AS sources
COPY catalog catalog
COPY compression compression
COPY levity levity
COPY api api
COPY workers workers
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# Without our sources `pip install .[…]` brings what they need, and is done again only when pyproject.toml or
# constraints.txt change; then the wheel takes the place of the empty package.
FROM build AS build-api
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt '.[api,postgres,oidc,tracing]'
RUN --mount=from=sources,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl

FROM build AS build-worker-io
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt '.[worker,postgres,tracing]'
RUN --mount=from=sources,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl

FROM build AS build-worker-cpu
# An index with builds of torch for the CPU alone makes this image smaller by some 5 GB.
ARG TORCH_INDEX_URL=""
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX_URL" ]; then \
    pip install --index-url "$TORCH_INDEX_URL" -c constraints.txt torch torchvision; fi \
    && pip install -c constraints.txt '.[train,postgres,tracing]'
RUN --mount=from=sources,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl

FROM build AS build-worker-gpu
# Both packages of ONNX Runtime hold the module `onnxruntime`; the one with the CUDA provider takes the other's place.
# Its CUDA libraries are those that torch has brought along.
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt '.[train,postgres,tracing]' \
    && pip uninstall --yes onnxruntime && pip install --no-deps -c constraints.txt onnxruntime-gpu
RUN --mount=from=sources,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --force-reinstall /wheels/*.whl

FROM python:${PYTHON_VERSION}-slim AS base
ENV PATH=/opt/levity/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/levity LEVITY_DATA_DIR=/var/lib/levity
RUN groupadd --system --gid 10001 levity \
    && useradd --system --uid 10001 --gid 10001 --create-home --home-dir /var/lib/levity levity
WORKDIR /var/lib/levity
VOLUME /var/lib/levity
USER 10001:10001

FROM base AS api
COPY --from=build-api /opt/levity /opt/levity
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000", "--timeout-graceful-shutdown", "20"]

FROM api AS operator
USER 0:0
# Debian's version is that of PostgreSQL 17; a newer server needs a newer client.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql-client \
    && rm -rf /var/lib/apt/lists/* && install --directory --owner=10001 --group=10001 /backups
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["python", "-P", "-m", "catalog"]
CMD ["--help"]

# Start workers with an init process (`init: true`): children of children that outlive their parents become its own.
FROM base AS worker
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-P", "-m", "workers.health"]
ENTRYPOINT ["python", "-P", "-m", "workers"]

FROM worker AS worker-io
COPY --from=build-worker-io /opt/levity /opt/levity
CMD ["--queue", "io"]

FROM worker AS worker-gpu
# What the NVIDIA container toolkit brings into the container: the driver's libraries, and nothing for graphics.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-worker-gpu /opt/levity /opt/levity
CMD ["--queue", "gpu"]

FROM worker AS worker-cpu
COPY --from=build-worker-cpu /opt/levity /opt/levity
CMD ["--queue", "cpu"]

# syntax=docker/dockerfile:1
# Two images from one file: `api` (small, no numerical libraries) and `worker`.
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 LEVITY_DATA_DIR=/var/lib/levity
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/levity levity
WORKDIR /opt/levity
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY catalog catalog
COPY compression compression
COPY levity levity

FROM base AS api
# Where pip looks for packages; empty means pip's own default.
ARG PIP_INDEX_URL=""
COPY api api
RUN pip install --no-cache-dir ${PIP_INDEX_URL:+--index-url "$PIP_INDEX_URL"} -c constraints.txt '.[api,postgres]'
USER 10001
VOLUME /var/lib/levity
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
CMD ["uvicorn", "api.app:create_app", "--factory", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
ARG PIP_INDEX_URL=""
COPY workers workers
RUN pip install --no-cache-dir ${PIP_INDEX_URL:+--index-url "$PIP_INDEX_URL"} -c constraints.txt '.[train,postgres]'
USER 10001
VOLUME /var/lib/levity
ENTRYPOINT ["python", "-m", "workers"]
CMD ["--queue", "cpu"]

# letstalk_rt on CPU: one image, no download at start, an ordinary user.
#   docker build -t letstalk --build-arg TORCH_INDEX=... .
#   docker compose up
FROM python:3.11-slim

RUN useradd --create-home --uid 10001 letstalk

WORKDIR /app
# torch first and pinned. The default build for Linux brings gigabytes of CUDA along: name the index
# of the CPU builds, which PyTorch's install page gives, to leave them out.
ARG TORCH_INDEX=""
COPY constraints.txt ./
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
      "$(grep '^torch==' constraints.txt)"

COPY pyproject.toml setup.py README.md LICENSE NOTICE ./
COPY letstalk_rt ./letstalk_rt
COPY server ./server
COPY client_examples ./client_examples
RUN pip install --no-cache-dir -c constraints.txt '.[server]'

USER letstalk
# A worker of a cluster has proxies that end TLS. Alone, the server needs a certificate, or whoever
# publishes its port only to such a proxy permits plain HTTP: -e LETSTALK_INSECURE_HTTP=on.
ENV LETSTALK_HOST=0.0.0.0 PYTHONUNBUFFERED=1
EXPOSE 8080/tcp
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://localhost:' + os.environ.get('LETSTALK_PORT', '8080') + '/healthz', timeout=2)"]
# Drains a worker of a cluster; any other server stops at once.
STOPSIGNAL SIGTERM
CMD ["letstalk", "serve"]

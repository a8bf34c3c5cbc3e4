# Any Debian-based image with Python 3.11 or later. In a release pipeline, give a digest: python:3.13-slim@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# no pip in there: nothing installs anything later
RUN python3 -m venv --without-pip /opt/venv
COPY requirements requirements
RUN python3 -m pip --python /opt/venv install --only-binary :all: --require-hashes -r requirements/runtime.txt
# What builds the wheel comes from the lock, too: hatchling, and what is in there because of it.
RUN awk '/^[a-z]/ { tool = "" } \
         { tool = tool $0 "\n" } \
         /^    # / && (tool ~ /^hatchling=/ || / hatchling$/) { printf "%s", tool; tool = "" }' \
        requirements/dev.txt > build.txt \
    && python3 -m venv --without-pip build \
    && python3 -m pip --python build install --only-binary :all: --require-hashes -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY broker_worker broker_worker
RUN build/bin/python -m hatchling build -t wheel \
    && python3 -m pip --python /opt/venv install --no-deps --no-index dist/*.whl
# readable for the worker, whatever the umask of the clone was
COPY config/healthcheck.py /opt/healthcheck.py
RUN chmod 644 /opt/healthcheck.py

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="broker-worker" \
      org.opencontainers.image.description="A worker daemon for RabbitMQ and Postgres" \
      org.opencontainers.image.licenses="MIT"
# A user of its own, and nothing that could make it another one.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /app --shell /usr/sbin/nologin worker \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/healthcheck.py /opt/healthcheck.py
# The root may be read-only: nothing is written there.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The current directory is importable: put or mount your handlers here, and name them in BROKER_WORKER_HANDLERS.
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# Alive, not ready: some orchestrators restart what is unhealthy, and a broker that is away is no reason to.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "/opt/healthcheck.py", "/livez"]
ENTRYPOINT ["broker-worker"]
CMD ["run"]

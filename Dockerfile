# syntax=docker/dockerfile:1
# The gateway and nothing else: built from the locked, hashed dependencies, and run as a user that owns nothing but its spool.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/farebox
WORKDIR /src
# Dependencies first: they change less often than the code, so their layer stays cached.
COPY requirements/build.txt requirements/runtime.txt requirements/otel.txt requirements/
RUN /opt/farebox/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
 && /opt/farebox/bin/pip install --require-hashes --only-binary :all: -r requirements/runtime.txt -r requirements/otel.txt
COPY pyproject.toml README.md LICENSE config.example.yaml ./
COPY policies policies
COPY gateway gateway
COPY migrations migrations
RUN /opt/farebox/bin/pip install --no-deps --no-build-isolation . \
 && /opt/farebox/bin/python -m compileall -q /opt/farebox/lib

FROM python:3.12-slim-bookworm
RUN groupadd --gid 10001 farebox \
 && useradd --uid 10001 --gid farebox --no-create-home --home-dir /var/lib/farebox --shell /usr/sbin/nologin farebox \
 && install -d -o farebox -g farebox -m 0700 /var/lib/farebox
COPY --from=build /opt/farebox /opt/farebox
ENV PATH=/opt/farebox/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    FAREBOX_SERVER_HOST=0.0.0.0 \
    FAREBOX_SERVER_LOG_FORMAT=json
USER 10001:10001
# The spool for settlements while Redis is unreachable, and the embedded engines' files if nothing else is configured.
WORKDIR /var/lib/farebox
VOLUME ["/var/lib/farebox"]
EXPOSE 4000
# Liveness, not readiness: restarting a gateway whose Redis is unreachable would not help.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4000/livez', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["farebox"]
CMD ["serve"]

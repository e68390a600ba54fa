# syntax=docker/dockerfile:1
# The gateway and nothing else: built from the locked, hashed dependencies, and run as a user that owns nothing but its spool.

FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# pip and the build backend have an environment of their own, so that the gateway's has neither.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/farebox
WORKDIR /src
# Dependencies first: they change less often than the code, so their layer stays cached.
COPY requirements/build.txt requirements/runtime.txt requirements/otel.txt requirements/
RUN /opt/build/bin/pip install --require-hashes --only-binary :all: -r requirements/build.txt \
 && /opt/build/bin/pip --python /opt/farebox install --no-compile --require-hashes --only-binary :all: \
      -r requirements/runtime.txt -r requirements/otel.txt
COPY pyproject.toml README.md LICENSE config.example.yaml ./
COPY policies policies
COPY gateway gateway
COPY migrations migrations
RUN /opt/build/bin/python -m hatchling build -t wheel \
 && /opt/build/bin/pip --python /opt/farebox install --no-compile --no-deps dist/*.whl \
 && /opt/farebox/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/farebox/lib

FROM python:3.12-slim-bookworm
# The base image has no compiled standard library, and on a read-only file system every process would compile what it imports:
# three times the work to start a gateway, five times for a health check. By hash, because image builders change times of files.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x site-packages /usr/local/lib
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
# Not by urllib, which would ask the proxy that Docker may have put into the environment.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('FAREBOX_SERVER_PORT', 4000)), timeout=2); c.request('GET', '/livez'); raise SystemExit(c.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["farebox"]
CMD ["serve"]

# The service's image. Build it from the repository's top: `docker build -t orchestrator .`
#
# Nothing is resolved here: every Python package comes from a lock file that holds its hash, and as a wheel, so that
# neither stage needs a compiler.

# The base of all stages. To pin it, hand a digest in (see "The image" in the manual's page `operations`):
#   docker build --build-arg BASE=python:3.13-slim-trixie@sha256:… .
ARG BASE=python:3.13-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build

# Only pg_dump, pg_restore and psql are taken from here: the package as a whole depends on perl (60 MB).
RUN apt-get update && apt-get install -y --no-install-recommends postgresql-client-17

# One venv to build with, and one that is shipped. The latter has no pip: nothing can be installed into it where it runs.
RUN python -m venv /opt/build && python -m venv --without-pip /opt/venv
ENV PATH=/opt/build/bin:$PATH
COPY requirements-build.lock requirements.lock ./
RUN pip install --quiet --require-hashes -r requirements-build.lock \
 && pip --python /opt/venv/bin/python install --quiet --no-compile --require-hashes -r requirements.lock \
 && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib

COPY pyproject.toml README.md LICENSE ./
COPY migrations ./migrations
COPY orchestrator ./orchestrator
RUN pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist . \
 && pip --python /opt/venv/bin/python install --quiet --no-deps --no-compile dist/*.whl \
 && python -m compileall -q --invalidation-mode unchecked-hash /opt/venv/lib/python*/site-packages/orchestrator


FROM ${BASE} AS runtime
ARG BASE
LABEL org.opencontainers.image.title="orchestrator" \
      org.opencontainers.image.description="The start-up of a service, done right: wait for Postgres, apply Drizzle migrations, then serve." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/${BASE}"

# libpq and psql's readline, and a name for the user, without which `~` has no meaning. The user owns nothing but the
# place where backups go: a volume that is new takes its owner from there.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libpq5 liblz4-1 libreadline8t64 libzstd1 zlib1g \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf/*-old /var/log/apt /var/log/*.log \
 && useradd --uid 10001 --user-group --no-log-init --no-create-home --home-dir /tmp --shell /usr/sbin/nologin orchestrator \
 && install --directory --mode=0700 --owner=10001 --group=10001 /backups \
 # No program takes another user's rights, whatever the container is allowed.
 && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
COPY --from=build /usr/lib/postgresql/17/bin/pg_dump /usr/lib/postgresql/17/bin/pg_restore \
     /usr/lib/postgresql/17/bin/psql /usr/local/bin/
COPY --from=build /opt/venv /opt/venv
RUN pg_dump --version && pg_restore --version && psql --version


FROM runtime AS contents
COPY .ci/sbom.py /
RUN python /sbom.py /opt/venv/lib/python3.13/site-packages >/sbom.cdx.json


FROM runtime
# What is in the image, for whoever looks for advisories: `docker run --rm --entrypoint cat orchestrator /usr/share/sbom.cdx.json`
COPY --from=contents /sbom.cdx.json /usr/share/sbom.cdx.json

# Bytecode is in the image already, and under a read-only root nothing could be written beside it.
# A container's own loopback reaches nobody: HTTP listens on all of its addresses, and answers nothing but /health until
# API_TOKEN is set, or API_ACCESS says that nobody else reaches the port.
# A failed start can be looked at, on /health and the page, for half a minute before the engine starts it again.
ENV PATH=/opt/venv/bin:$PATH \
    FAILED_HOLD=30s \
    HOST=0.0.0.0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 3005
STOPSIGNAL SIGTERM

# A failed probe counts only after --start-period, or after the first probe that succeeded. Migrations may take hours,
# and a container that is `unhealthy` makes `docker compose up` give up on everything that waits for it: hence a day. It
# hides nothing: a start that fails exits, and once ready the service is `unhealthy` 15 s after /health stopped saying ok.
# No --start-interval: it needs Docker 25, and older engines refuse a file that names it.
HEALTHCHECK --interval=5s --timeout=5s --retries=3 --start-period=24h CMD ["orchestrator", "healthcheck"]
ENTRYPOINT ["orchestrator"]
CMD ["serve"]

# Entrepot in a container:
#
#   docker build --tag entrepot .
#   docker run --read-only --publish 5000:5000 --volume entrepot:/var/cache/entrepot entrepot
#
# The base needs Python 3.11 or later, with pip to build; nothing is compiled, and nothing comes without a hash.
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
COPY requirements.lock /
RUN python3 -m venv /opt/entrepot \
 && /opt/entrepot/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: \
        --require-hashes --requirement /requirements.lock \
 && /opt/entrepot/bin/pip uninstall --quiet --yes pip setuptools
COPY proxy /proxy
# The package is put where a wheel would put it: a build backend, which the lock has not, is not worth its risk.
RUN cp -r /proxy "$(/opt/entrepot/bin/python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
 && printf '#!/opt/entrepot/bin/python3\nfrom proxy.__main__ import main\n\nmain(prog_name="entrepot")\n' \
        >/opt/entrepot/bin/entrepot \
 && chmod 0755 /opt/entrepot/bin/entrepot \
 && /opt/entrepot/bin/python3 -m compileall -q /opt/entrepot/lib \
 && install -d -m 0700 -o 65532 -g 65532 /var/cache/entrepot

FROM ${BASE}
COPY --from=build /opt/entrepot /opt/entrepot
COPY --from=build --chown=65532:65532 /var/cache/entrepot /var/cache/entrepot
ENV PATH=/opt/entrepot/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    ENTREPOT_SERVER_LISTEN=0.0.0.0:5000 \
    ENTREPOT_ADMIN_LISTEN=0.0.0.0:5001 \
    ENTREPOT_STORE_PATH=/var/cache/entrepot
USER 65532:65532
VOLUME /var/cache/entrepot
EXPOSE 5000 5001
# Ready, and not only alive: during a drain the answer is 503.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/opt/entrepot/bin/python3", "-IS", "-c", "\
import http.client, os, ssl\n\
port = int(os.environ['ENTREPOT_SERVER_LISTEN'].rpartition(':')[2])\n\
tls = os.environ.get('ENTREPOT_SERVER_TLS_CERTIFICATE')\n\
server = http.client.HTTPSConnection('127.0.0.1', port, timeout=4, context=ssl._create_unverified_context()) \
if tls else http.client.HTTPConnection('127.0.0.1', port, timeout=4)\n\
server.request('GET', '/readyz')\n\
raise SystemExit(server.getresponse().status != 200)\n\
"]
ENTRYPOINT ["entrepot"]
CMD ["serve"]

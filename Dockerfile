# One image for the three commands: docker run IMAGE warehouse|replicator|scorer VERB
# Any Debian-like base with Python 3.11 or later and useradd will do: --build-arg PYTHON_IMAGE=...
ARG PYTHON_IMAGE=python:3.13-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/tailrace && python -m venv /opt/build
COPY pyproject.toml constraints.txt ./
# The dependencies are a layer of their own: a change of Tailrace's code does not fetch them again.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      >requirements.txt \
 && /opt/tailrace/bin/pip install --quiet -c constraints.txt -r requirements.txt \
 && /opt/build/bin/pip install --quiet -c constraints.txt build hatchling
COPY README.md LICENSE ./
COPY migrations migrations
COPY replicator replicator
COPY warehouse warehouse
COPY scorer scorer
# numba's cache remembers a source file's time. An image that was pushed and pulled keeps whole seconds only, so
# the sources get whole seconds here; else the first start after a pull would compile everything again.
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /dist . \
 && /opt/tailrace/bin/pip install --quiet --no-deps --no-compile /dist/*.whl \
 && find /opt/tailrace/lib -name '*.py' -exec touch -d "@$(date +%s)" {} + \
 && /opt/tailrace/bin/python -m compileall -q /opt/tailrace/lib \
 && rm -rf /opt/tailrace/lib/python3*/site-packages/pip /opt/tailrace/lib/python3*/site-packages/pip-*

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/tailrace --shell /usr/sbin/nologin tailrace
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH \
    NUMBA_CACHE_DIR=/var/lib/tailrace/numba
WORKDIR /etc/tailrace
USER 10001
COPY deploy/warm.py /opt/tailrace/warm.py
RUN python /opt/tailrace/warm.py
CMD ["warehouse", "status"]

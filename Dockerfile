# netcls in a container: slim, non-root, its own virtual environment.
#
#   docker build -t netcls .
#   docker run --rm --network none -v "$PWD:/data:ro" netcls classify /data/capture.pcap
#   docker run --rm --network host --cap-drop ALL --cap-add NET_RAW --read-only --tmpfs /tmp netcls netcls-capture sniff eth0
#
# docs/ops/compose.yml runs the daemon beside Kafka, Prometheus and Grafana.
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/netcls
COPY pyproject.toml README.md LICENSE /src/
COPY capture /src/capture
COPY models /src/models
COPY netcls /src/netcls
# The CPU build of torch: no index but PyTorch's own CPU one serves it under this version.
RUN /opt/netcls/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    "/src[arrow,kafka,quic,serve]"
# A second interpreter, the only file here that may open an interface: a capability on the first one would be every script's.
RUN cp "$(readlink -f /opt/netcls/bin/python)" /opt/netcls/bin/python-capture \
    && sed '1s|.*|#!/opt/netcls/bin/python-capture|' /opt/netcls/bin/netcls >/opt/netcls/bin/netcls-capture \
    && chmod 755 /opt/netcls/bin/netcls-capture

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --create-home netcls \
    && install -d -o netcls -g netcls -m 750 /run/netcls /var/lib/netcls
COPY --from=build /opt/netcls /opt/netcls
COPY docs/ops/container-start.sh /opt/netcls/bin/container-start
RUN apt-get update && apt-get install -y --no-install-recommends libcap2-bin libpcap0.8 \
    && setcap cap_net_raw+ep /opt/netcls/bin/python-capture \
    && apt-get purge -y libcap2-bin && rm -rf /var/lib/apt/lists/*
ENV PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    PATH=/opt/netcls/bin:$PATH
# numba's cache holds pickles: it is made here, owned by root, and each start works on a copy (see container-start).
COPY tests/data/captures/demo.pcap.zst /opt/netcls/share/demo.pcap.zst
RUN NUMBA_CACHE_DIR=/opt/netcls/numba netcls classify /opt/netcls/share/demo.pcap.zst --format jsonl >/dev/null \
    # What only live capture compiles; where the build may not open an interface, the first start does it.
    && { NUMBA_CACHE_DIR=/opt/netcls/numba timeout 60 netcls sniff lo --duration-s 1 --quiet >/dev/null || true; } \
    && chmod -R a+rX /opt/netcls/numba
USER netcls
WORKDIR /home/netcls
# Of the daemon; a container that only classifies files has none to ask.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["/opt/netcls/bin/netcls", "ctl", "status"]
ENTRYPOINT ["/opt/netcls/bin/container-start"]
CMD ["--help"]

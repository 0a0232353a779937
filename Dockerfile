# netcls in a container: slim, non-root, its own virtual environment.
#
#   docker build -t netcls .
#   docker run --rm -v "$PWD:/data:ro" netcls classify /data/capture.pcap
FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/netcls
COPY pyproject.toml README.md LICENSE /src/
COPY capture /src/capture
COPY models /src/models
COPY netcls /src/netcls
# The CPU build of torch: no index but PyTorch's own CPU one serves it under this version.
RUN /opt/netcls/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "/src[arrow]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --create-home netcls
COPY --from=build /opt/netcls /opt/netcls
# numba's cache holds pickles: it is made here, owned by root, and only read at run time.
ENV PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=passive \
    PATH=/opt/netcls/bin:$PATH
COPY tests/data/captures/demo.pcap.zst /opt/netcls/share/demo.pcap.zst
RUN netcls classify /opt/netcls/share/demo.pcap.zst --format jsonl >/dev/null
USER netcls
WORKDIR /home/netcls
ENTRYPOINT ["/opt/netcls/bin/netcls"]
CMD ["--help"]

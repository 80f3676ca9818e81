# xpcnn without a GPU. From the repository's root:
#   docker build -f docker/cpu.Dockerfile -t xpcnn-cpu .
#   docker run --rm xpcnn-cpu train --epochs 1
FROM python:3.13.9-slim-trixie

# The caches, Matplotlib's and that of the kernels compiled for the CPU at hand, are in directories that any --user can
# write.
ENV MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/var/cache/compiled \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

# The C compiler's version is the distribution's, which the base image's tag fixes.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 xpcnn \
 && install -d -o xpcnn -g xpcnn /workspace /workspace/runs \
 && install -d -m 1777 /var/cache/compiled

# hatchling builds xpcnn and is installed first, so that the constraints hold for it too.
WORKDIR /opt/xpcnn
COPY docker/constraints.txt docker/
RUN pip install --no-cache-dir -c docker/constraints.txt hatchling
COPY pyproject.toml README.md LICENSE ./
COPY xpcnn xpcnn
RUN pip install --no-cache-dir --no-build-isolation -c docker/constraints.txt .

WORKDIR /workspace
USER 1000
ENTRYPOINT ["xpcnn"]
CMD ["train"]

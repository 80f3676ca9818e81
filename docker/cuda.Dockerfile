# xpcnn on an NVIDIA GPU, with its tests and measurements. CUDA's libraries and cuDNN come from PyPI, so the base is a
# plain Python and the host needs nothing but a driver for CUDA 13 and the NVIDIA Container Toolkit. PyTorch and JAX are
# not there: the measurements then leave them out. From the repository's root:
#   docker build -f docker/cuda.Dockerfile -t xpcnn-cuda .
#   docker run --rm --gpus all xpcnn-cuda train --device cuda
#   docker run --rm --gpus all --entrypoint scripts/gpu_check.sh xpcnn-cuda --quick
FROM python:3.13.9-slim-trixie

# The caches are in directories that any --user can write.
ENV CUPY_CACHE_DIR=/var/cache/cupy \
    CUDA_CACHE_PATH=/var/cache/cupy/driver \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 xpcnn \
 && install -d -o xpcnn -g xpcnn /workspace /workspace/runs \
 && install -d -m 1777 /var/cache/cupy

# CuPy, CUDA and cuDNN are gigabytes and have a layer of their own, which a change of xpcnn leaves alone. hatchling
# builds xpcnn and is installed first, so that the constraints hold for it too.
WORKDIR /workspace
COPY docker/constraints.txt docker/
RUN pip install --no-cache-dir -c docker/constraints.txt \
      "cupy-cuda13x[ctk]" hatchling ml_dtypes nvidia-cudnn-cu13 nvidia-cudnn-frontend nvidia-nccl-cu13
COPY --chown=xpcnn:xpcnn pyproject.toml README.md LICENSE ./
COPY --chown=xpcnn:xpcnn xpcnn xpcnn
RUN pip install --no-cache-dir --no-build-isolation -c docker/constraints.txt ".[cuda13,cudnn13,nccl13,dev]"
COPY --chown=xpcnn:xpcnn scripts scripts
COPY --chown=xpcnn:xpcnn tests tests
COPY --chown=xpcnn:xpcnn docs docs

USER 1000
ENTRYPOINT ["xpcnn"]
CMD ["train", "--device", "cuda"]

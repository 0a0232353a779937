# `make demo` and `make test` need nothing but Python 3.11 (see .ci/bootstrap for what they set up).
PYTHON_FILES := capture models netcls tests bench
export OMP_WAIT_POLICY := passive

.PHONY: demo test test-slow lint format bench results clean

demo: .venv/.installed
	.venv/bin/netcls classify tests/data/captures/demo.pcap.zst --format table

test: .venv/.installed-dev
	.venv/bin/python -m pytest -q -n 2 -m "not slow"

test-slow: .venv/.installed-dev
	.venv/bin/python -m pytest -q -n 2 -m slow

lint: .venv/.installed-dev
	.venv/bin/ruff check $(PYTHON_FILES)
	.venv/bin/ruff format --check $(PYTHON_FILES)
	.venv/bin/mypy

format: .venv/.installed-dev
	.venv/bin/ruff check --fix $(PYTHON_FILES)
	.venv/bin/ruff format $(PYTHON_FILES)

bench: .venv/.installed-dev
	.venv/bin/python bench/bench_end_to_end.py

# DATA: a folder with lab/ and public/, see bench/results_tasks.py; or the variable NETCLS_RESULTS_DATA.
results: .venv/.installed-dev
	nice -n 10 .venv/bin/python bench/results.py $(if $(DATA),--data $(DATA))

.venv/.installed: pyproject.toml .ci/bootstrap
	.ci/bootstrap
	touch $@

.venv/.installed-dev: pyproject.toml .ci/bootstrap
	.ci/bootstrap dev
	touch .venv/.installed $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

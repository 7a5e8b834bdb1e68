# Two commands do everything on a fresh Debian 12 machine, as root: `make demo` and `make test`.
# Both install what they need (scripts/setup.sh) and may be run any number of times.
PY := .venv/bin/python

.PHONY: setup demo test unit lint bench soak lock manifests sbom install clean
setup:            ## Debian packages, .venv from the pinned requirements, generated schemas, the CNI shim
	@scripts/setup.sh

demo: setup       ## bring a lab up, apply the examples, check every way of talking, trace one request
	@scripts/demo.sh

# Real packets cross a machine that may be busy with something else: what failed is asked once more, alone, and
# both answers are printed. Whatever needs its second chance is a fault to be mended. Tests wait for clocks more than
# they work: three processes share the files, and each file's tests stay together with what they share.
test: setup       ## every test: pure, with namespaces, with whole labs
	@$(PY) -m pytest tests --ignore=tests/bench -n 3 --dist loadfile --no-loadscope-reorder \
	  || $(PY) -m pytest tests --ignore=tests/bench --last-failed

unit: setup       ## only the pure tests
	@$(PY) -m pytest tests/unit tests/property

lint: setup       ## style, types, import rules
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports

bench: setup      ## what things cost, as ratios against a peer or the bare kernel
	@$(PY) -m tests.bench

soak: setup       ## for an hour: many more generated cases, and labs in which something goes wrong every few seconds
	@PODLANE_POLICY_CASES=150 $(PY) -m pytest tests/netns/test_policy_packets.py --timeout 3600
	@for backend in vxlan host-gw bgp wireguard ipip; do \
	  $(PY) -m tests.soak --minutes 8 --set backend.type=$$backend || exit 1; done

lock:             ## remake the hash-pinned locks from requirements*.in (needs pip-tools on PATH)
	pip-compile --generate-hashes --no-emit-index-url --no-emit-trusted-host --strip-extras --allow-unsafe -q --no-header -o requirements.txt requirements.in
	pip-compile --generate-hashes --no-emit-index-url --no-emit-trusted-host --strip-extras --allow-unsafe -q --no-header -o requirements-dev.txt requirements-dev.in

manifests: setup  ## write deploy/ from scripts/deployment/, dashboard and alerts from scripts/monitoring.py
	@$(PY) -m scripts.deployment.render
	@$(PY) scripts/monitoring.py

sbom:             ## print a bill of materials (CycloneDX): pinned requirements, and what the image has of Debian
	@scripts/sbom.py --packages $$(grep -v '^#' scripts/image/packages)

install: setup    ## put `podlane` on the PATH
	@ln -sf "$(CURDIR)/.venv/bin/podlane" /usr/local/bin/podlane

clean:
	rm -rf .venv native/build src/podlane/lab/api/generated .mypy_cache .ruff_cache .pytest_cache .hypothesis

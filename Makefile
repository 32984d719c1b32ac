# Thin targets over scripts/. Each does all set-up and skips what is already done.
.PHONY: build test demo bench sanitize tidy setup clean

setup:
	@scripts/setup.sh

build: setup
	@scripts/build.sh

test:
	@scripts/test.sh

# make demo ARGS="--tokens 2048"
demo:
	@scripts/demo.sh $(ARGS)

bench: build
	@build/venv/bin/python benchmarks/kernel.py
	@build/venv/bin/python benchmarks/compile_time.py
	@build/venv/bin/python benchmarks/end_to_end.py

# ASan and UBSan over everything, in build-sanitize
sanitize:
	@scripts/sanitize.sh

tidy:
	@scripts/tidy.sh

clean:
	@ninja -C build clean

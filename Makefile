# Thin targets over scripts/. Each does all set-up and skips what is already done.
.PHONY: build test demo bench setup clean

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

clean:
	@ninja -C build clean

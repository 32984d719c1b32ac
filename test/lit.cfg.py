"""lit configuration: tools, features and substitutions of the test suite."""

import os

import lit.formats
import lit.util

config.name = "prefill-opt"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir", ".test", ".ll"]
config.excludes = ["Inputs", "CMakeLists.txt"]
config.test_source_root = os.path.join(config.prefill_source_dir, "test")
config.test_exec_root = os.path.join(config.prefill_binary_dir, "test")

config.environment["PATH"] = os.pathsep.join(
    [
        os.path.join(config.prefill_binary_dir, "bin"),
        config.llvm_tools_dir,
        config.environment["PATH"],
    ]
)
# Kernels compiled by tests must not come from, or go to, the user's cache.
config.environment["PREFILL_CACHE"] = os.path.join(
    config.test_exec_root, "kernel-cache"
)
config.substitutions.append(("%python", config.prefill_python))
config.substitutions.append(("%bin", os.path.join(config.prefill_binary_dir, "bin")))
# Models that live beside the repository; tests that need them say so.
models = os.path.join(config.prefill_source_dir, "..", "shared", "models", "onnx")
if os.path.isdir(models):
    config.available_features.add("shared-models")
    config.substitutions.append(("%models", os.path.realpath(models)))

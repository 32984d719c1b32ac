//===- LibraryTest.cpp - Libraries, their cache and their errors ----------===//

#include "prefill/Codegen/Library.h"
#include "AttentionProblem.h"
#include "llvm/ADT/SmallString.h"
#include "llvm/Support/FileSystem.h"
#include "llvm/Support/MemoryBuffer.h"
#include "llvm/Support/Path.h"
#include "gtest/gtest.h"
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <sys/resource.h>

using namespace prefill;

namespace {

class LibraryTest : public ::testing::Test {
protected:
  void SetUp() override {
    ASSERT_FALSE(llvm::sys::fs::createUniqueDirectory("prefill-test", folder));
    options.output = in("libmodel.so");
    options.header = in("prefill_model.h");
    options.cacheDir = in("cache");
    options.runtimeArchives = {PREFILL_RUNTIME_ARCHIVE};
    ASSERT_FALSE(llvm::sys::fs::create_directories(options.cacheDir));
  }
  void TearDown() override { llvm::sys::fs::remove_directories(folder); }
  std::string in(const char *name) {
    llvm::SmallString<128> path(folder);
    llvm::sys::path::append(path, name);
    return path.str().str();
  }
  static KernelSpec spec(const char *name) {
    KernelSpec spec;
    spec.name = name;
    spec.causal = true;
    spec.qHeads = 2;
    return spec;
  }
  std::string read(const std::string &file) {
    auto buffer = llvm::MemoryBuffer::getFile(file);
    return buffer ? (*buffer)->getBuffer().str() : "";
  }
  /// Files in the test's folder, without the cache.
  int fileCount() {
    int count = 0;
    std::error_code code;
    for (llvm::sys::fs::directory_iterator it(folder, code), end;
         it != end && !code; it.increment(code))
      ++count;
    return count;
  }

  llvm::SmallString<128> folder;
  LibraryOptions options;
  LibraryReport report;
  std::string error;
};

TEST_F(LibraryTest, RunsThroughTheRuntime) {
  KernelSpec layer = spec("layer_0");
  ASSERT_TRUE(compileLibrary({layer}, options, error, &report)) << error;
  void *library = dlopen(options.output.c_str(), RTLD_NOW | RTLD_LOCAL);
  ASSERT_TRUE(library) << dlerror();
  auto count =
      reinterpret_cast<size_t (*)()>(dlsym(library, "prefill_kernel_count"));
  auto name = reinterpret_cast<const char *(*)(size_t)>(
      dlsym(library, "prefill_kernel_name"));
  ASSERT_TRUE(count && name);
  EXPECT_EQ(count(), 1u);
  EXPECT_STREQ(name(0), "layer_0");
  using Entry = prefill_status (*)(prefill_context *, const DLTensor *const *,
                                   size_t, DLTensor *const *, size_t);
  auto entry = reinterpret_cast<Entry>(dlsym(library, "layer_0"));
  ASSERT_TRUE(entry);

  const int64_t s = 100, d = 64;
  harness::Problem problem(layer, s, s);
  std::vector<float> q(2 * s * d), o(2 * s * d, -1.0f);
  std::copy(problem.q.begin(), problem.q.end(), q.begin());
  std::copy(problem.q.begin(), problem.q.end(), q.begin() + s * d);
  auto tensor = [](std::vector<int64_t> &shape, void *data) {
    DLTensor tensor;
    std::memset(&tensor, 0, sizeof(tensor));
    tensor.data = data;
    tensor.device = {kDLCPU, 0};
    tensor.ndim = int32_t(shape.size());
    tensor.dtype = {kDLFloat, 32, 1};
    tensor.shape = shape.data();
    return tensor;
  };
  std::vector<int64_t> rows{1, 2, s, d}, keys{1, 1, s, d};
  DLTensor tq = tensor(rows, q.data()), tk = tensor(keys, problem.k.data()),
           tv = tensor(keys, problem.v.data()), to = tensor(rows, o.data());
  const DLTensor *inputs[] = {&tq, &tk, &tv};
  DLTensor *outputs[] = {&to};
  ASSERT_EQ(problem.check(*getCpuTarget(harness::machineLevel())), "");
  for (uint32_t level : {2u, 3u, 4u}) {
    if (int(level) > harness::machineLevel())
      break;
    prefill_context context;
    std::memset(&context, 0, sizeof(context));
    context.struct_size = sizeof(context);
    context.isa_limit = level;
    ASSERT_EQ(entry(&context, inputs, 3, outputs, 1), PREFILL_OK)
        << context.message;
    for (size_t i = 0; i < o.size(); ++i)
      ASSERT_NEAR(o[i], problem.o[i % (s * d)], 1e-5) << i;
  }
  dlclose(library);
  EXPECT_NE(read(options.header).find("prefill_status layer_0("),
            std::string::npos);
}

TEST_F(LibraryTest, DependsOnTheCLibraryOnly) {
  ASSERT_TRUE(compileLibrary({spec("k")}, options, error)) << error;
  std::string file = read(options.output);
  // DT_NEEDED names are strings of the dynamic string table.
  EXPECT_EQ(file.find("libstdc++"), std::string::npos);
  EXPECT_EQ(file.find("libgcc"), std::string::npos);
  EXPECT_EQ(file.find("libLLVM"), std::string::npos);
  EXPECT_NE(file.find("libc.so.6"), std::string::npos);
}

TEST_F(LibraryTest, EqualKernelsShareCodeAndTheCacheServesThem) {
  KernelSpec first = spec("a"), second = spec("b"), third = spec("c");
  second.qHeads = second.kvHeads = 8; // not in the generated code
  third.causal = false;
  ASSERT_TRUE(compileLibrary({first, second, third}, options, error, &report))
      << error;
  // Two attention kernels and one score kernel for three levels.
  EXPECT_EQ(report.compiledKernels, 9);
  EXPECT_EQ(report.cachedKernels, 0);
  std::string before = read(options.output);
  ASSERT_TRUE(compileLibrary({first, second, third}, options, error, &report))
      << error;
  EXPECT_EQ(report.compiledKernels, 0);
  EXPECT_EQ(report.cachedKernels, 9);
  EXPECT_EQ(read(options.output), before);
}

TEST_F(LibraryTest, DamagedCacheEntriesAreIgnored) {
  options.levels = {3};
  ASSERT_TRUE(compileLibrary({spec("k")}, options, error)) << error;
  std::error_code code;
  for (llvm::sys::fs::directory_iterator it(options.cacheDir, code), end;
       it != end && !code; it.increment(code)) {
    std::string text = read(it->path());
    text[text.size() / 2] ^= 1;
    llvm::raw_fd_ostream(it->path(), code) << text;
  }
  ASSERT_TRUE(compileLibrary({spec("k")}, options, error, &report)) << error;
  EXPECT_EQ(report.cachedKernels, 0);
  EXPECT_EQ(report.compiledKernels, 2);
}

TEST_F(LibraryTest, ErrorsAreOneLineAndLeaveNothing) {
  options.levels = {3};
  int before = fileCount();
  auto expectError = [&](llvm::ArrayRef<KernelSpec> specs,
                         const LibraryOptions &with, const char *part) {
    error.clear();
    EXPECT_FALSE(compileLibrary(specs, with, error));
    EXPECT_NE(error.find(part), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    EXPECT_EQ(fileCount(), before) << error;
  };
  LibraryOptions bad = options;
  bad.runtimeArchives = {in("no-such.a")};
  expectError({spec("k")}, bad, "does not exist");
  bad = options;
  bad.runtimeArchives.clear();
  expectError({spec("k")}, bad, "prefill_attention");
  bad = options;
  bad.output = in("no/such/folder/lib.so");
  expectError({spec("k")}, bad, "cannot write");
  bad = options;
  bad.header = in("no/such/folder/h.h");
  expectError({spec("k")}, bad, "cannot write");
  bad = options;
  bad.levels = {7};
  expectError({spec("k")}, bad, "x86-64-v7");
  expectError({spec("k"), spec("k")}, options, "two kernels");
  expectError({spec("not an identifier")}, options, "identifier");
  KernelSpec odd = spec("k");
  odd.headDim = 0;
  expectError({odd}, options, "head dimension 0");
  odd = spec("k");
  odd.blockK = 20;
  expectError({odd}, options, "block_k 20");
}

TEST_F(LibraryTest, FullDisk) {
  // Files may not grow past a limit, which fails as a full disk does: first the
  // library, then already the linker's inputs.
  int before = fileCount();
  auto *handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit normal;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &normal), 0);
  options.useCache = false;
  for (rlim_t bytes : {100 << 10, 1 << 10}) {
    rlimit small = normal;
    small.rlim_cur = bytes;
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
    error.clear();
    EXPECT_FALSE(compileLibrary({spec("k")}, options, error));
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &normal), 0);
    EXPECT_NE(error.find("File too large"), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
    EXPECT_EQ(fileCount(), before);
  }
  std::signal(SIGXFSZ, handler);
  options.output = "/dev/full/lib.so";
  EXPECT_FALSE(compileLibrary({spec("k")}, options, error));
  EXPECT_NE(error.find("cannot write '/dev/full/lib.so'"), std::string::npos)
      << error;
  if (const char *folder = std::getenv("PREFILL_TEST_FULL_DISK")) {
    options.output = std::string(folder) + "/lib.so";
    EXPECT_FALSE(compileLibrary({spec("k")}, options, error));
    EXPECT_NE(error.find("No space left"), std::string::npos) << error;
  }
}

TEST_F(LibraryTest, Text) {
  std::string text;
  ASSERT_TRUE(printKernels({spec("k")}, KernelText::Tile, options, text, error))
      << error;
  EXPECT_NE(text.find("tile.kernel @attention_f32_d64"), std::string::npos);
  text.clear();
  ASSERT_TRUE(printKernels({spec("k")}, KernelText::LLVM, options, text, error))
      << error;
  EXPECT_NE(text.find("define"), std::string::npos);
  text.clear();
  ASSERT_TRUE(
      printKernels({spec("k")}, KernelText::Assembly, options, text, error))
      << error;
  EXPECT_NE(text.find("vfmadd231ps"), std::string::npos);
}

} // namespace

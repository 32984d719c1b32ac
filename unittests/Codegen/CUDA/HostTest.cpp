//===- HostTest.cpp - Libraries with CUDA code, as hosts call them --------===//

#include "HostFixture.h"
#include <atomic>
#include <thread>

using namespace prefill;
using namespace prefill::harness;

namespace {

TEST_F(CudaHost, Causal) {
  Call call("causal", 2, 100, 130);
  int stream;
  call.context.stream = &stream;
  EXPECT_RUNS(call);
  EXPECT_EQ(driver->launches, 1);
  EXPECT_EQ(call.streams, std::vector<void *>{&stream});
  EXPECT_EQ(call.batches, std::vector<unsigned>{2});
}

TEST_F(CudaHost, RowsOfAllHeadsBesideEachOther) {
  Call call("bshd", 2, 70, 90);
  call.offsets = {0, 0};
  EXPECT_RUNS(call);
}

TEST_F(CudaHost, MaskSinksWindowSoftcapOffset) {
  Call call("features", 2, 60, 90);
  EXPECT_RUNS(call);
  EXPECT_EQ(driver->launches, 1);
}

/// Numbers on the host: entries that differ are launches of their own.
TEST_F(CudaHost, LengthsAndOffsetsOnTheHost) {
  Call call("features", 3, 60, 90);
  call.lengths = {90, 90, 33};
  call.offsets = {30, 30, 20};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  call.tensors[7].device = call.tensors[8].device = {kDLCPU, 0};
  EXPECT_RUNS(call);
  EXPECT_EQ(call.batches, (std::vector<unsigned>{2, 1}));
}

/// Numbers on the device: read there, and never trusted.
TEST_F(CudaHost, LengthsAndOffsetsOnTheDevice) {
  Call call("features", 3, 60, 90);
  call.lengths = {90, 1000, 33};
  call.offsets = {30, 25, 20};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  EXPECT_RUNS(call);
  EXPECT_EQ(call.batches, std::vector<unsigned>{3});
  call.lengths[1] = -5;
  EXPECT_RUNS(call);
}

/// Rotary embedding: Q and K are rotated into workspace first.
TEST_F(CudaHost, Rotary) {
  Call call("rotary", 2, 60, 90);
  EXPECT_RUNS(call);
  EXPECT_EQ(call.functions[0], "prefill_rotate"); // keys
  EXPECT_EQ(call.functions[1], "prefill_rotate");
  EXPECT_EQ(call.functions.size(), 3u);
  EXPECT_EQ(call.live, 0);
  // By pairs, with wide tables, at positions that differ.
  for (DLDeviceType where : {kDLCPU, kDLCUDA}) {
    Call pairs("interleaved", 2, 60, 90);
    pairs.offsets = {30, 11};
    pairs.tensors[8].device.device_type = where;
    EXPECT_RUNS(pairs);
    EXPECT_EQ(pairs.functions.size(), where == kDLCPU ? 5u : 3u);
  }
}

/// The rotated keys, which a KV cache holds, are an output.
TEST_F(CudaHost, RotatedKeys) {
  Call call("rotary", 1, 60, 90);
  std::vector<uint16_t> keys(call.data[1].size());
  DLTensor rotated = call.tensors[1];
  rotated.data = keys.data();
  call.outputs.resize(PREFILL_OUT_ROTATED_K + 1);
  call.outputs[PREFILL_OUT_ROTATED_K] = &rotated;
  call.extra = &keys;
  EXPECT_RUNS(call);
  EXPECT_EQ(call.memory.size(), 1u); // of Q
  for (int key = 0; key < 90; ++key)
    for (int c = 0; c < 64; ++c)
      ASSERT_NEAR(
          harness::fromStorage(keys[call.at(false, 0, 1, key) + c], DType::F16),
          call.rotated(1, call.at(false, 0, 1, key), key, c), 2e-3)
          << key << " " << c;
}

/// Masks and sinks as models have them.
TEST_F(CudaHost, OtherTypesOfMaskAndSinks) {
  Call call("features", 2, 60, 90);
  call.wideMask.assign(call.mask.begin(), call.mask.end());
  for (int64_t &element : call.wideMask)
    element *= int64_t(1) << 40; // visible by its upper half
  for (float &sink : call.sinks) {
    call.halfSinks.push_back(harness::toStorage(sink, DType::F16));
    sink = harness::fromStorage(call.halfSinks.back(), DType::F16);
  }
  call.tensors[5].data = call.wideMask.data();
  call.tensors[5].dtype = {kDLInt, 64, 1};
  call.tensors[6].data = call.halfSinks.data();
  call.tensors[6].dtype = {kDLFloat, 16, 1};
  EXPECT_RUNS(call);
  EXPECT_EQ(call.functions.size(), 3u);
  EXPECT_EQ(call.live, 0);
  // No mask at all: everything is visible.
  Call open("features", 2, 60, 90);
  open.inputs[PREFILL_IN_KEY_MASK] = nullptr;
  open.mask.assign(open.mask.size(), 1);
  EXPECT_RUNS(open);
}

TEST_F(CudaHost, Workspace) {
  Call none("rotary");
  none.context.device_alloc = nullptr; // the driver's pool
  EXPECT_RUNS(none);
  EXPECT_EQ(driver->pool_count, 2);
  EXPECT_EQ(driver->pool_live, 0);
  driver->launches = 0;
  driver->failing = "cuMemAllocAsync";
  driver->code = 2;
  refused(none, PREFILL_OUT_OF_MEMORY, "workspace on the GPU");
  driver->failing = nullptr;
  Call full("rotary");
  full.context.device_alloc = [](void *, size_t) -> void * { return nullptr; };
  refused(full, PREFILL_OUT_OF_MEMORY, "workspace on the GPU");
  // A failure in the middle leaves nothing behind.
  Call failing("rotary");
  driver->failing = "cuLaunchKernel";
  driver->code = 2;
  refused(failing, PREFILL_DEVICE_ERROR, "prefill_rotate");
  EXPECT_EQ(failing.live, 0);
  driver->failing = nullptr;
  Call shortTable("rotary", 1, 60, 90);
  shortTable.shapes[9][0] = shortTable.shapes[10][0] = 89;
  refused(shortTable, PREFILL_INVALID_SHAPE, "COS");
  Call onHost("rotary", 1, 60, 90);
  onHost.tensors[9].device = {kDLCPU, 0};
  refused(onHost, PREFILL_INVALID_ARGUMENT, "COS");
}

/// Plans: what is visited is found on the GPU, and the attention of just that
/// is right. (That it is what the plan says: IndexTest.cpp.)
TEST_F(CudaHost, Sparse) {
  for (const char *name : {"ashape", "vertical", "blocks", "sale", "xattention",
                           "flexprefill", "infllm", "sampled"}) {
    SCOPED_TRACE(name);
    Call call(name, 1, 700, 700);
    EXPECT_RUNS(call);
    EXPECT_TRUE(
        llvm::StringRef(call.functions.back()).ends_with("_sm_80_lists"));
    for (int h = 0; h < 3; ++h) {
      EXPECT_LT(call.density(h), 0.9) << h;
      EXPECT_GT(call.density(h), 0.2) << h;
    }
    EXPECT_EQ(call.density(3), 1);
    EXPECT_EQ(call.live, 0);
  }
  // Of A-shape, exactly: 64 keys at the start, those up to 128 before.
  Call call("ashape", 1, 700, 700);
  EXPECT_RUNS(call);
  EXPECT_TRUE(call.isVisited(0, 0, 600, 0));
  EXPECT_FALSE(call.isVisited(0, 0, 600, 64));
  EXPECT_TRUE(call.isVisited(0, 0, 600, 600 - 128));
  // Short prompts are dense.
  Call brief("ashape", 1, 150, 150);
  EXPECT_RUNS(brief);
  EXPECT_EQ(brief.functions.size(), 1u);
}

/// The plan is copied once a context, lists are made for every batch entry.
TEST_F(CudaHost, SparseBatches) {
  Call call("ashape", 2, 300, 330);
  call.lengths = {330, 250};
  call.inputs[PREFILL_IN_KV_LENGTHS] = &call.tensors[7];
  EXPECT_RUNS(call);
  const int plans = driver->pool_count;
  EXPECT_EQ(plans, 1);
  EXPECT_RUNS(call);
  EXPECT_EQ(driver->pool_count, plans);
  Call failing("blocks", 1, 300, 300);
  driver->launches = 0;
  driver->failing = "cuMemcpyHtoD";
  driver->code = 2;
  refused(failing, PREFILL_DEVICE_ERROR, "cuMemcpyHtoD");
  driver->failing = nullptr;
}

TEST_F(CudaHost, NothingToDo) {
  Call rows("causal", 1, 0, 10), entries("causal", 0, 10, 10);
  EXPECT_EQ(rows.run(driver), PREFILL_OK) << rows.context.message;
  EXPECT_EQ(entries.run(driver), PREFILL_OK) << entries.context.message;
  EXPECT_EQ(driver->launches, 0);
  Call keys("causal", 1, 10, 0);
  keys.offsets = {-10};
  EXPECT_RUNS(keys);
}

TEST_F(CudaHost, LoadsOnceAContext) {
  Call first("causal"), second("causal");
  EXPECT_RUNS(first);
  EXPECT_RUNS(second);
  EXPECT_EQ(driver->loads, 1);
  driver->context += 1000;
  Call third("causal");
  EXPECT_RUNS(third);
  EXPECT_EQ(driver->loads, 2);
}

TEST_F(CudaHost, Threads) {
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int i = 0; i < 8; ++i)
    threads.emplace_back([&] {
      Call call("causal");
      for (int j = 0; j < 20; ++j)
        failures += call.run(driver, false) != PREFILL_OK;
    });
  for (std::thread &thread : threads)
    thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(driver->loads, 1);
  EXPECT_EQ(driver->launches, 160);
}

/// PTX for sm_80 serves all later GPUs.
TEST_F(CudaHost, OtherGpus) {
  driver->major = 12;
  Call later("causal");
  EXPECT_RUNS(later);
  driver->major = 7;
  driver->minor = 5;
  driver->launches = 0;
  Call earlier("causal");
  refused(earlier, PREFILL_UNSUPPORTED,
          "sm_75, only for sm_90a as PTX, sm_80 as PTX");
}

/// An H100 takes the kernel that is for it alone.
TEST_F(CudaHost, Hopper) {
  driver->major = 9;
  driver->shared_limit = 227 << 10;
  Call call("causal", 1, 200, 300);
  EXPECT_RUNS(call);
  EXPECT_TRUE(llvm::StringRef(call.functions[0]).ends_with("_sm_90a_tma"));
  // A later GPU of the same family does not.
  driver->minor = 1;
  Call later("causal");
  EXPECT_RUNS(later);
  EXPECT_TRUE(llvm::StringRef(later.functions[0]).ends_with("_sm_80"));
}

TEST_F(CudaHost, NoCodeForGpus) {
  Call call("float");
  for (int i = 0; i < 4; ++i)
    call.tensors[i].dtype.bits = 32;
  refused(call, PREFILL_UNSUPPORTED, "no code for GPUs");
}

TEST_F(CudaHost, WrongArguments) {
  {
    Call call("causal");
    call.tensors[2].device.device_id = 1;
    refused(call, PREFILL_INVALID_ARGUMENT, "input V");
  }
  {
    Call call("causal");
    call.tensors[1].device = {kDLCPU, 0};
    refused(call, PREFILL_INVALID_ARGUMENT, "input K");
  }
  {
    Call call("causal");
    call.tensors[3].device = {kDLCPU, 0};
    refused(call, PREFILL_INVALID_ARGUMENT, "output O");
  }
  {
    Call call("causal");
    driver->device = 3;
    refused(call, PREFILL_INVALID_ARGUMENT, "GPU 0, but GPU 3");
    driver->device = 0;
  }
  {
    Call call("causal");
    call.tensors[0].dtype = {kDLBfloat, 16, 1};
    refused(call, PREFILL_INVALID_TYPE, "input Q: expected float16");
  }
  {
    Call call("causal");
    call.inputs[PREFILL_IN_V] = nullptr;
    refused(call, PREFILL_INVALID_ARGUMENT, "input V: expected a tensor");
  }
  {
    Call call("causal");
    call.tensors[1].data = nullptr;
    refused(call, PREFILL_INVALID_ARGUMENT, "input K: expected data, got null");
  }
  {
    Call call("causal");
    call.shapes[2][2] = 99;
    refused(call, PREFILL_INVALID_SHAPE, "input V");
  }
  {
    Call call("causal");
    int64_t strides[] = {4 * 100 * 64, 100 * 60, 60, 1};
    call.tensors[0].strides = strides;
    refused(call, PREFILL_INVALID_SHAPE, "multiple of 8");
  }
  {
    Call call("causal");
    call.tensors[2].byte_offset = 2;
    refused(call, PREFILL_INVALID_ARGUMENT, "aligned to 16 bytes");
  }
  {
    Call call("features");
    call.tensors[5].device = {kDLCPU, 0};
    refused(call, PREFILL_INVALID_ARGUMENT, "KEY_MASK");
  }
  {
    Call call("features");
    call.inputs[PREFILL_IN_SINKS] = nullptr;
    refused(call, PREFILL_INVALID_ARGUMENT, "SINKS");
  }
  {
    Call call("features");
    call.tensors[8].dtype.bits = 32;
    refused(call, PREFILL_INVALID_TYPE, "Q_OFFSET: expected int64");
  }
  {
    Call call("causal");
    call.context.struct_size = offsetof(prefill_context, stream);
    refused(call, PREFILL_INVALID_ARGUMENT, "struct_size");
  }
  for (int slot : {PREFILL_OUT_DENSITY, PREFILL_OUT_TOKEN_SCORE}) {
    Call call("causal");
    std::vector<int64_t> shape = {1, slot == PREFILL_OUT_DENSITY ? 4 : 100};
    DLTensor output = call.tensor(shape, call.lse.data(), {kDLFloat, 32, 1});
    call.outputs.resize(PREFILL_OUT_COUNT);
    call.outputs[slot] = &output;
    refused(call, PREFILL_UNSUPPORTED, "not on GPUs");
  }
  Call call("causal");
  EXPECT_RUNS(call);
}

TEST_F(CudaHost, NoContext) {
  driver->context = 0;
  Call call("causal");
  refused(call, PREFILL_INVALID_ARGUMENT, "no CUDA context");
}

/// A driver that fails is named, and the next call works.
TEST_F(CudaHost, DriverErrors) {
  for (const char *name : {"cuModuleLoadDataEx", "cuModuleGetFunction",
                           "cuFuncSetAttribute", "cuLaunchKernel"}) {
    Call call("causal");
    driver->failing = name;
    driver->code = 2;
    refused(call, PREFILL_DEVICE_ERROR, name);
    EXPECT_NE(
        std::string(call.context.message).find("CUDA_ERROR_OUT_OF_MEMORY"),
        std::string::npos);
    driver->failing = nullptr;
  }
  Call call("causal");
  EXPECT_RUNS(call);
}

} // namespace

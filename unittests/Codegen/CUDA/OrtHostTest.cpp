//===- OrtHostTest.cpp - The custom op of ONNX Runtime's CUDA provider ----===//
//
// Plays ONNX Runtime: registers the library's ops, and runs the one for the
// CUDA provider with values "on the GPU" (HostCall.h).
//
//===----------------------------------------------------------------------===//

#include "HostCall.h"
#include "ort_abi.h"
#include "gtest/gtest.h"

using namespace prefill;
using namespace prefill::harness;

namespace {

/// What stands behind ONNX Runtime's opaque pointers: a value and its type are
/// a DLTensor, a status is a string, a context is a Call.
struct Registered {
  std::vector<const OrtCustomOp *> ops;
} registered;
std::string kernelName;
int streamOfTheSession;

int typeOf(const DLTensor &tensor) {
  const DLDataType type = tensor.dtype;
  if (type.code == kDLFloat)
    return type.bits == 16 ? ONNX_FLOAT16 : ONNX_FLOAT;
  if (type.code == kDLBfloat)
    return ONNX_BFLOAT16;
  return type.bits == 8    ? ONNX_UINT8
         : type.bits == 32 ? ONNX_INT32
                           : ONNX_INT64;
}

const DLTensor *tensorOf(const void *value) {
  return static_cast<const DLTensor *>(value);
}

OrtApi makeApi() {
  OrtApi api = {};
  auto set = [&](int slot, auto function) {
    api.slot[slot] = reinterpret_cast<void (*)()>(+function);
  };
  using Status = OrtStatus *;
  set(0, [](int, const char *text) {
    return reinterpret_cast<Status>(new std::string(text));
  });
  set(93,
      [](Status status) { delete reinterpret_cast<std::string *>(status); });
  set(26, [](const char *, OrtCustomOpDomain **out) -> Status {
    *out = nullptr;
    return nullptr;
  });
  set(27, [](OrtCustomOpDomain *, const OrtCustomOp *op) -> Status {
    registered.ops.push_back(op);
    return nullptr;
  });
  set(28, [](OrtSessionOptions *, OrtCustomOpDomain *) -> Status {
    return nullptr;
  });
  set(87,
      [](const OrtKernelInfo *, const char *name, char *out,
         size_t *size) -> Status {
        if (std::strcmp(name, "kernel") != 0)
          return reinterpret_cast<Status>(new std::string("no such attribute"));
        if (out)
          std::memcpy(out, kernelName.c_str(), kernelName.size() + 1);
        *size = kernelName.size() + 1;
        return nullptr;
      });
  set(88, [](const OrtKernelContext *context, size_t *out) -> Status {
    *out = reinterpret_cast<const Call *>(context)->inputs.size();
    return nullptr;
  });
  set(89, [](const OrtKernelContext *context, size_t *out) -> Status {
    *out = reinterpret_cast<const Call *>(context)->outputs.size();
    return nullptr;
  });
  set(90,
      [](const OrtKernelContext *context, size_t i,
         const OrtValue **out) -> Status {
        *out = reinterpret_cast<const OrtValue *>(
            reinterpret_cast<const Call *>(context)->inputs[i]);
        return nullptr;
      });
  set(91,
      [](OrtKernelContext *context, size_t i, const int64_t *, size_t,
         OrtValue **out) -> Status {
        *out = reinterpret_cast<OrtValue *>(
            reinterpret_cast<Call *>(context)->outputs[i]);
        return nullptr;
      });
  set(65, [](const OrtValue *value, OrtTensorTypeAndShapeInfo **out) -> Status {
    *out = reinterpret_cast<OrtTensorTypeAndShapeInfo *>(
        const_cast<OrtValue *>(value));
    return nullptr;
  });
  set(99, [](OrtTensorTypeAndShapeInfo *) {});
  set(60, [](const OrtTensorTypeAndShapeInfo *info, int *out) -> Status {
    *out = typeOf(*tensorOf(info));
    return nullptr;
  });
  set(61, [](const OrtTensorTypeAndShapeInfo *info, size_t *out) -> Status {
    *out = tensorOf(info)->ndim;
    return nullptr;
  });
  set(62,
      [](const OrtTensorTypeAndShapeInfo *info, int64_t *out,
         size_t count) -> Status {
        std::copy_n(tensorOf(info)->shape, count, out);
        return nullptr;
      });
  set(51, [](OrtValue *value, void **out) -> Status {
    *out = tensorOf(value)->data;
    return nullptr;
  });
  set(193, [](const OrtKernelContext *, void **out) -> Status {
    *out = &streamOfTheSession;
    return nullptr;
  });
  return api;
}

const OrtApi *getApi(uint32_t) {
  static const OrtApi api = makeApi();
  return &api;
}

class OrtHost : public ::testing::Test {
protected:
  void SetUp() override {
    ASSERT_EQ(World::get().error, "");
    driver = World::get().reset();
    static unsigned long long contexts = 5000;
    driver->context = ++contexts;
    registered.ops.clear();
    static const OrtApiBase base = {getApi, [] { return "1.24.0"; }};
    auto registerOps =
        reinterpret_cast<OrtStatus *(*)(void *, const OrtApiBase *)>(
            World::get().symbol("RegisterCustomOps"));
    ASSERT_TRUE(registerOps);
    ASSERT_EQ(registerOps(nullptr, &base), nullptr);
  }
  /// The op of a provider for an element type; null: there is none.
  const OrtCustomOp *find(llvm::StringRef provider, int type) {
    for (const OrtCustomOp *op : registered.ops)
      if (op->GetExecutionProviderType(op) == provider &&
          op->GetInputType(op, 0) == type)
        return op;
    return nullptr;
  }
  /// Empty, or why the call failed.
  std::string compute(Call &call) {
    const OrtCustomOp *op =
        find("CUDAExecutionProvider", typeOf(call.tensors[0]));
    if (!op)
      return "no op";
    kernelName = call.spec.name;
    void *kernel = nullptr;
    if (op->CreateKernelV2(op, getApi(17), nullptr, &kernel))
      return "no kernel";
    driver->user = &call;
    call.driver = driver;
    driver->launch = [](void *user, const fake_launch *launch) {
      return static_cast<Call *>(user)->execute(*launch);
    };
    auto *status = reinterpret_cast<std::string *>(op->KernelComputeV2(
        kernel, reinterpret_cast<OrtKernelContext *>(&call)));
    op->KernelDestroy(kernel);
    std::string text = status ? *status : "";
    delete status;
    return text;
  }
  fake_cuda *driver = nullptr;
};

TEST_F(OrtHost, OneOpAProvider) {
  EXPECT_TRUE(find("CPUExecutionProvider", ONNX_FLOAT16));
  EXPECT_TRUE(find("CUDAExecutionProvider", ONNX_FLOAT16));
  EXPECT_TRUE(find("CUDAExecutionProvider", ONNX_BFLOAT16));
  // Its kernel has no code for GPUs: nodes stay with the CPU.
  EXPECT_TRUE(find("CPUExecutionProvider", ONNX_FLOAT));
  EXPECT_FALSE(find("CUDAExecutionProvider", ONNX_FLOAT));
  const OrtCustomOp *op = find("CUDAExecutionProvider", ONNX_FLOAT16);
  EXPECT_EQ(op->GetInputMemoryType(op, PREFILL_IN_Q), ORT_MEMORY_DEFAULT);
  EXPECT_EQ(op->GetInputMemoryType(op, PREFILL_IN_KEY_MASK),
            ORT_MEMORY_DEFAULT);
  EXPECT_EQ(op->GetInputMemoryType(op, PREFILL_IN_Q_OFFSET),
            ORT_MEMORY_CPU_INPUT);
  op = find("CPUExecutionProvider", ONNX_FLOAT16);
  EXPECT_EQ(op->GetInputMemoryType(op, PREFILL_IN_Q_OFFSET),
            ORT_MEMORY_DEFAULT);
}

TEST_F(OrtHost, RunsOnTheSessionsStream) {
  Call call("causal", 2, 100, 130);
  EXPECT_EQ(compute(call), "");
  EXPECT_EQ(call.emulation, "");
  EXPECT_LT(call.error(), 2.5e-2);
  EXPECT_EQ(call.streams, std::vector<void *>{&streamOfTheSession});
}

/// Workspace comes from the driver's pool.
TEST_F(OrtHost, Rotary) {
  Call call("interleaved", 2, 60, 90);
  call.offsets = {30, 11};
  EXPECT_EQ(compute(call), "");
  EXPECT_EQ(call.emulation, "");
  EXPECT_LT(call.error(), 2.5e-2);
  EXPECT_EQ(driver->pool_count, 2);
  EXPECT_EQ(driver->pool_live, 0);
}

TEST_F(OrtHost, Errors) {
  Call call("causal");
  driver->failing = "cuLaunchKernel";
  driver->code = 700;
  EXPECT_NE(compute(call).find("kernel 'causal': cuLaunchKernel: "
                               "CUDA_ERROR_ILLEGAL_ADDRESS"),
            std::string::npos);
}

} // namespace

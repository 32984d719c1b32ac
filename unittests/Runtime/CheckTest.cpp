//===- CheckTest.cpp - Wrong arguments give one clear line
//-----------------===//
#include "Reference.h"
#include "gtest/gtest.h"

using namespace ref;

namespace {

constexpr unsigned F = PREFILL_TILE_CAUSAL | PREFILL_TILE_KEY_MASK |
                       PREFILL_TILE_BIAS | PREFILL_TILE_SINK;
using P = Problem<8, 4, 16, 16, float, F>;

struct Check : testing::Test {
  P p;
  void SetUp() override {
    p.b = 2;
    p.build();
    p.wantStatistics();
  }
  void expect(prefill_status status, const std::string &message) {
    EXPECT_EQ(p.run(), status);
    EXPECT_EQ(p.context.message, message);
  }
  DLTensor &dl(int slot) { return p.in[slot].dl; }
};

TEST_F(Check, Fine) { expect(PREFILL_OK, ""); }

TEST_F(Check, MissingTensor) {
  p.in[PREFILL_IN_K].absent = true;
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': input K: expected a tensor, got null");
}
TEST_F(Check, MissingOutput) {
  p.out[PREFILL_OUT_O].absent = true;
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': output O: expected a tensor, got null");
}
TEST_F(Check, TooFewInputs) {
  DLTensor *outputs[] = {p.out[0].get()};
  const DLTensor *inputs[] = {p.in[0].get(), p.in[1].get()};
  EXPECT_EQ(prefill_attention(&p.desc, &p.context, inputs, 2, outputs, 1),
            PREFILL_INVALID_ARGUMENT);
  EXPECT_STREQ(p.context.message,
               "kernel 'test': input V: expected a tensor, got null");
}
TEST_F(Check, TooManyInputs) {
  DLTensor *outputs[] = {p.out[0].get()};
  const DLTensor *inputs[] = {p.in[0].get()};
  EXPECT_EQ(prefill_attention(&p.desc, &p.context, inputs, PREFILL_IN_COUNT + 1,
                              outputs, 1),
            PREFILL_INVALID_ARGUMENT);
}
TEST_F(Check, NullLists) {
  EXPECT_EQ(prefill_attention(&p.desc, &p.context, nullptr, 3, nullptr, 1),
            PREFILL_INVALID_ARGUMENT);
  EXPECT_EQ(prefill_attention(nullptr, &p.context, nullptr, 0, nullptr, 0),
            PREFILL_INVALID_ARGUMENT);
  EXPECT_EQ(prefill_attention(&p.desc, nullptr, nullptr, 0, nullptr, 0),
            PREFILL_INVALID_ARGUMENT);
}
TEST_F(Check, SmallContext) {
  p.context.struct_size = 16;
  EXPECT_EQ(p.run(), PREFILL_INVALID_ARGUMENT);
  p.context.struct_size = sizeof(prefill_context);
  EXPECT_EQ(p.run(), PREFILL_OK);
}
TEST_F(Check, Heads) {
  p.in[PREFILL_IN_K].shape[1] = 4;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input K: expected [2,2,?,8], got [2,4,40,8]");
}
TEST_F(Check, Batch) {
  p.in[PREFILL_IN_V].shape[0] = 1;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input V: expected [2,2,40,4], got [1,2,40,4]");
}
TEST_F(Check, Rank) {
  dl(PREFILL_IN_Q).ndim = 3;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input Q: expected [?,4,?,8], got [2,4,40]");
}
TEST_F(Check, HugeRank) {
  dl(PREFILL_IN_Q).ndim = 1000000;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input Q: expected rank 0 to 8, got 1000000");
}
TEST_F(Check, NegativeDimension) {
  p.in[PREFILL_IN_Q].shape[2] = -4;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input Q: dimension 2 is negative (-4)");
}
TEST_F(Check, Type) {
  dl(PREFILL_IN_Q).dtype = {kDLFloat, 16, 1};
  expect(PREFILL_INVALID_TYPE,
         "kernel 'test': input Q: expected float32, got float16");
}
TEST_F(Check, Lanes) {
  dl(PREFILL_IN_Q).dtype = {kDLFloat, 32, 4};
  EXPECT_EQ(p.run(), PREFILL_INVALID_TYPE);
}
TEST_F(Check, Device) {
  dl(PREFILL_IN_V).device.device_type = kDLCUDA;
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': input V: expected device cpu (1), got device type 2");
}
TEST_F(Check, NullData) {
  dl(PREFILL_IN_V).data = nullptr;
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': input V: expected data, got null");
}
TEST_F(Check, Misaligned) {
  dl(PREFILL_IN_V).byte_offset += 2;
  expect(PREFILL_INVALID_ARGUMENT, "kernel 'test': input V: data is not "
                                   "aligned to its 4-byte elements");
}
TEST_F(Check, LastStride) {
  p.in[PREFILL_IN_K].strides[3] = 2;
  dl(PREFILL_IN_K).strides = p.in[PREFILL_IN_K].strides.data();
  expect(PREFILL_INVALID_SHAPE, "kernel 'test': input K: expected adjacent "
                                "elements in the last dimension, got stride 2");
}
TEST_F(Check, NegativeStride) {
  p.in[PREFILL_IN_K].strides[2] = -8;
  dl(PREFILL_IN_K).strides = p.in[PREFILL_IN_K].strides.data();
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input K: stride of dimension 2 is negative (-8)");
}
TEST_F(Check, OverlappingOutput) {
  p.out[PREFILL_OUT_O].strides[1] = 0;
  p.out[PREFILL_OUT_O].dl.strides = p.out[PREFILL_OUT_O].strides.data();
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': output O: stride of dimension 1 is 0");
}
TEST_F(Check, BroadcastInputStride) {
  // All heads of K the same: a stride of 0 is fine for inputs.
  p.in[PREFILL_IN_K].strides[1] = 0;
  dl(PREFILL_IN_K).strides = p.in[PREFILL_IN_K].strides.data();
  expect(PREFILL_OK, "");
  EXPECT_LT(p.error(), 2e-6);
}
TEST_F(Check, Overflow) {
  p.in[PREFILL_IN_K].strides = {INT64_MAX / 2, 40 * 8, 8, 1};
  dl(PREFILL_IN_K).strides = p.in[PREFILL_IN_K].strides.data();
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input K: dimensions overflow the address space");
  p.in[PREFILL_IN_Q].shape[2] = INT64_MAX / 4;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input Q: dimensions overflow the address space");
}
TEST_F(Check, BiasShape) {
  p.in[PREFILL_IN_BIAS].make({3, 4, 40, 40}, kDLFloat, 32);
  expect(PREFILL_INVALID_SHAPE, "kernel 'test': input BIAS: expected "
                                "[2,4,40,40], got [3,4,40,40]");
}
TEST_F(Check, BiasRank) {
  p.in[PREFILL_IN_BIAS].make({1, 1, 1, 1, 1}, kDLFloat, 32);
  EXPECT_EQ(p.run(), PREFILL_INVALID_SHAPE);
}
TEST_F(Check, BiasType) {
  p.in[PREFILL_IN_BIAS].make({40, 40}, kDLInt, 64);
  expect(PREFILL_INVALID_TYPE, "kernel 'test': input BIAS: expected bool, "
                               "float32, float16 or bfloat16, got int64");
}
TEST_F(Check, MaskShape) {
  p.in[PREFILL_IN_KEY_MASK].make({2, 41}, kDLInt, 64);
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input KEY_MASK: expected [2,40], got [2,41]");
}
TEST_F(Check, NotCompiledIn) {
  p.in[PREFILL_IN_Q_SEGMENT].make({2, 40}, kDLInt, 64);
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': input Q_SEGMENT: the kernel is compiled without it");
}
TEST_F(Check, OffsetNeeded) {
  p.desc.alignment = PREFILL_ALIGN_OPERAND;
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': input Q_OFFSET: expected a tensor, got null");
}
TEST_F(Check, LengthsShape) {
  p.in[PREFILL_IN_KV_LENGTHS].make({3}, kDLInt, 64);
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': input KV_LENGTHS: expected [2], got [3]");
}
TEST_F(Check, Lse) {
  p.out[PREFILL_OUT_LSE].shape[2] = 41;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': output LSE: expected [2,4,40], got [2,4,41]");
}
TEST_F(Check, OutputShape) {
  p.out[PREFILL_OUT_O].shape[3] = 5;
  expect(PREFILL_INVALID_SHAPE,
         "kernel 'test': output O: expected [2,4,40,4], got [2,4,40,5]");
}
TEST_F(Check, Abi) {
  p.desc.abi = 99;
  expect(PREFILL_UNSUPPORTED,
         "kernel 'test': built for kernel ABI 99, the runtime has " +
             std::to_string(PREFILL_KERNEL_ABI));
}
TEST_F(Check, Description) {
  p.desc.kv_heads = 3;
  expect(PREFILL_INVALID_ARGUMENT,
         "kernel 'test': the kernel's description is inconsistent");
}
TEST_F(Check, NoVariant) {
  p.variant.isa = 99;
  EXPECT_EQ(p.run(), PREFILL_UNSUPPORTED);
}
TEST_F(Check, IsaLimit) {
  static int called;
  called = 0;
  prefill_tile_variant variants[2] = {p.variant, p.variant};
  variants[0].isa = PREFILL_ISA_X86_64_V3;
  variants[0].attention = [](const prefill_tile_args *) { ++called; };
  p.desc.variants = variants;
  p.desc.variant_count = 2;
  p.context.isa_limit = PREFILL_ISA_X86_64_V2;
  expect(PREFILL_OK, "");
  EXPECT_EQ(called, 0);
  EXPECT_LT(p.error(), 2e-6);
}

// --- Memory -----------------------------------------------------------------

struct Host {
  int64_t allocations = 0, live = 0, fail_at = -1;
};
void *allocate(void *opaque, size_t bytes) {
  Host *host = static_cast<Host *>(opaque);
  if (host->allocations++ == host->fail_at)
    return nullptr;
  ++host->live;
  return aligned_alloc(64, bytes);
}
void release(void *opaque, void *pointer) {
  --static_cast<Host *>(opaque)->live;
  free(pointer);
}

TEST_F(Check, EveryAllocationMayFail) {
  p.in[PREFILL_IN_KEY_MASK].make({2, 40}, kDLInt, 64);
  p.in[PREFILL_IN_SINKS].make({4}, kDLFloat, 32);
  p.desc.masked_row = PREFILL_MASKED_MEAN;
  Host count;
  p.context.host = &count;
  p.context.alloc = allocate;
  p.context.free = release;
  ASSERT_EQ(p.run(), PREFILL_OK);
  EXPECT_GT(count.allocations, 3);
  EXPECT_EQ(count.live, 0);
  for (int64_t i = 0; i < count.allocations; ++i) {
    Host failing;
    failing.fail_at = i;
    p.context.host = &failing;
    EXPECT_EQ(p.run(), PREFILL_OUT_OF_MEMORY);
    EXPECT_NE(strstr(p.context.message, "no memory"), nullptr);
    EXPECT_EQ(failing.live, 0);
  }
}

} // namespace

//===- Model.cpp - A model of two kernels, as the code generator emits it
//---===//
//
// Linked into the unit tests and, with the runtime, into the small library that
// the ONNX Runtime test loads.
//
//===----------------------------------------------------------------------===//
#include "Reference.h"

namespace {
constexpr unsigned Full = PREFILL_TILE_CAUSAL | PREFILL_TILE_KEY_MASK |
                          PREFILL_TILE_BIAS | PREFILL_TILE_SINK;
const prefill_tile_variant floatVariant[] = {
    {PREFILL_ISA_X86_64_V2, 16, 64,
     ref::referenceTile<8, 8, 16, 16, float, Full>, nullptr}};
const prefill_tile_variant halfVariant[] = {
    {PREFILL_ISA_X86_64_V2, 16, 64,
     ref::referenceTile<8, 8, 16, 16, _Float16, PREFILL_TILE_CAUSAL>, nullptr}};

prefill_attention_desc describe(const char *name, int dtype, unsigned features,
                                int layout, int rank,
                                const prefill_tile_variant *variant) {
  prefill_attention_desc desc{};
  desc.abi = PREFILL_KERNEL_ABI;
  desc.features = features;
  desc.name = name;
  desc.dtype = dtype;
  desc.q_layout = desc.k_layout = desc.v_layout = desc.o_layout = layout;
  desc.o_rank = rank;
  desc.q_heads = 4;
  desc.kv_heads = 2;
  desc.head_dim = desc.v_head_dim = 8;
  desc.block_q = desc.block_k = 16;
  desc.window_left = ref::Unbounded;
  desc.window_right = 0;
  desc.scale = NAN;
  desc.variants = variant;
  desc.variant_count = 1;
  return desc;
}
const prefill_attention_desc floatKernel =
    describe("attention_f32", PREFILL_F32, Full, PREFILL_BHSD, 4, floatVariant);
const prefill_attention_desc halfKernel =
    describe("attention_f16", PREFILL_F16, PREFILL_TILE_CAUSAL, PREFILL_BSHD, 3,
             halfVariant);
} // namespace

extern "C" {
extern const prefill_attention_desc *const prefill_model_kernels[] = {
    &floatKernel, &halfKernel};
extern const int64_t prefill_model_kernel_count = 2;
}

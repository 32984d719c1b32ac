//===- Schedule.cpp - Tile sizes and what GPUs can do ---------------------===//

#include "prefill/Codegen/CUDA/CUDA.h"
#include "prefill/Codegen/KernelBuilder.h"
#include "prefill/kernel_abi.h"
#include <cmath>

using namespace prefill;
using llvm::Twine;

std::string prefill::getChip(int arch, bool archSpecific) {
  return "sm_" + std::to_string(arch) + (archSpecific ? "a" : "");
}

std::string CudaSchedule::chip() const { return getChip(arch, archSpecific); }

int prefill::getSharedLimit(int arch) {
  switch (arch) {
  case 80:
    return 163 << 10;
  case 86:
  case 89:
    return 99 << 10;
  case 90:
    return 227 << 10;
  default:
    return 0;
  }
}

std::string prefill::checkCudaSpec(const KernelSpec &spec, int arch) {
  auto refuse = [&](const Twine &reason) {
    return ("kernel '" + Twine(spec.name) + "' for sm_" + Twine(arch) + ": " +
            reason)
        .str();
  };
  if (getSharedLimit(arch) == 0)
    return refuse("no such target; there are sm_80, sm_86, sm_89 and sm_90");
  if (spec.dtype == DType::F32)
    return refuse("float32 inputs; tensor cores take float16 or bfloat16: "
                  "convert the model, or keep this kernel on the CPU");
  for (auto [what, size] : {std::pair("head dimension", spec.headDim),
                            std::pair("value head dimension", spec.vHeadDim)})
    if (size < 16 || size > 256 || size % 16)
      return refuse(
          Twine(what) + " " + Twine(size) +
          "; GPUs take multiples of 16 up to 256: keep this kernel on "
          "the CPU");
  if (spec.hasBias)
    return refuse("a float bias is not supported on GPUs: keep this kernel on "
                  "the CPU");
  if (spec.hasSegments)
    return refuse("segments are not supported on GPUs: use one sequence a "
                  "batch entry, or the CPU");
  if (spec.rotary != Rotary::None)
    return refuse("rotary embedding inside the kernel is not supported on "
                  "GPUs: apply it to q and k before");
  if (getTileFeatures(spec) & PREFILL_TILE_SKIP)
    return refuse("skip is not supported on GPUs: leave it out of the plan, or "
                  "keep this kernel on the CPU");
  return checkKernelSpec(spec);
}

/// Masks and softcap want registers beside the accumulators.
static bool isRich(const KernelSpec &spec) {
  return spec.softcap != 0 || spec.hasKeyMask ||
         spec.windowLeft < KernelSpec::Unbounded;
}

bool prefill::chooseCudaSchedule(const KernelSpec &spec, int arch, bool lists,
                                 CudaSchedule &schedule, std::string &error) {
  error = checkCudaSpec(spec, arch);
  if (!error.empty())
    return false;
  schedule = CudaSchedule();
  schedule.arch = arch;
  schedule.lists = lists;
  const int size = std::max(spec.headDim, spec.vHeadDim);
  // FlashAttention-2's sizes for an A100, less where masks need registers:
  // accumulators of 128 rows are (size + block_k) / 2 registers a thread with 8
  // warps, twice that with 4.
  schedule.blockQ = 128;
  schedule.blockK = 64;
  schedule.warps = size <= 64 ? 4 : 8;
  schedule.stages = size <= 128 ? 2 : 1;
  if (lists && isRich(spec)) {
    schedule.warps = 8;
    if (size > 192)
      schedule.blockK = 32;
  }
  auto bytes = [&] {
    auto row = [](int elements) { return (elements + 63) / 64 * 128; };
    const int staged = schedule.stages * schedule.blockK;
    return row(spec.headDim) * (schedule.blockQ + staged) +
           row(spec.vHeadDim) * staged;
  };
  // sm_86 and sm_89 have less shared memory: there, 64 rows at 256.
  while (bytes() > getSharedLimit(arch)) {
    if (schedule.stages > 1) {
      --schedule.stages;
    } else {
      schedule.blockQ /= 2;
      schedule.warps /= 2;
    }
  }
  return true;
}

void prefill::setRegisterBudgets(const KernelSpec &spec,
                                 CudaSchedule &schedule) {
  const int size = std::max(spec.headDim, spec.vHeadDim);
  if (schedule.warps > 8) {
    schedule.copyRegisters = 32;
    schedule.computeRegisters = 160;
  } else if (schedule.tensorMaps && !schedule.persistent && !isRich(spec)) {
    // One thread copies, and needs next to nothing, unless it has to find its
    // work or its rows' bounds, too.
    schedule.copyRegisters = 24;
    schedule.computeRegisters = 240;
  } else {
    // Row numbers of lists want registers where rows are copied, but the
    // widest accumulators more so.
    const bool more = schedule.lists && size <= 192;
    schedule.copyRegisters = more ? 56 : 40;
    schedule.computeRegisters = more ? 224 : 232;
  }
}

bool prefill::isPersistentCarried(const KernelSpec &spec) {
  return spec.causal &&
         chooseWarpgroupSchedule(spec, /*lists=*/false, /*tensorMaps=*/true,
                                 /*persistent=*/true)
                 .blockK == chooseWarpgroupSchedule(spec, /*lists=*/false,
                                                    /*tensorMaps=*/true,
                                                    /*persistent=*/false)
                                .blockK;
}

CudaSchedule prefill::chooseWarpgroupSchedule(const KernelSpec &spec,
                                              bool lists, bool tensorMaps,
                                              bool persistent) {
  CudaSchedule schedule;
  schedule.arch = 90;
  schedule.archSpecific = schedule.warpgroups = true;
  schedule.lists = lists;
  schedule.stages = 2;
  schedule.tensorMaps = tensorMaps && !lists;
  schedule.persistent = persistent && !lists;
  // FlashAttention-3's sizes with copies by cp.async. Accumulators, scores and
  // probabilities are size / 2, block_k / 2 and block_k / 4 registers.
  const int size = std::max(spec.headDim, spec.vHeadDim);
  const bool rich = isRich(spec);
  schedule.warps = size <= 64 && !lists && !rich ? 12 : 8;
  setRegisterBudgets(spec, schedule);
  schedule.blockQ = 16 * schedule.warps;
  schedule.takeTurns = size <= 128;
  schedule.foldScale = std::isnan(spec.scale) || spec.scale > 1e-30f;
  if (size <= 128)
    schedule.blockK = 128;
  else if (size <= 192)
    schedule.blockK = lists ? 64 : 112;
  else if (rich)
    schedule.blockK = lists ? 32 : 64;
  else
    schedule.blockK = lists ? 64 : 80;
  // What a persistent block knows of its work wants a register or two as well:
  // with larger tiles than these ptxas spills 4 to 16 bytes.
  if (schedule.persistent && rich && size > 128)
    schedule.blockK = size <= 192 ? 80 : 48;
  if (schedule.persistent && !rich && !spec.causal && size <= 64)
    schedule.blockK = 112;
  if (schedule.persistent && !rich && !spec.causal && size > 192)
    schedule.blockK = 64;
  return schedule;
}

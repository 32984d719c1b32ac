//===- Emulator.cpp - Findings, reports, devices --------------------------===//

#include "prefill/Emulator/Emulator.h"
#include "Memory.h"

using namespace llvm;
using namespace prefill::emu;

StringRef prefill::emu::getName(FindingKind kind) {
  switch (kind) {
  case FindingKind::Deadlock:
    return "deadlock";
  case FindingKind::OverArrival:
    return "over-arrival";
  case FindingKind::Divergence:
    return "divergence";
  case FindingKind::PendingResult:
    return "pending-result";
  case FindingKind::MissingWait:
    return "missing-wait";
  case FindingKind::MissingFence:
    return "missing-fence";
  case FindingKind::Race:
    return "race";
  case FindingKind::Uninitialised:
    return "uninitialised";
  case FindingKind::Misaligned:
    return "misaligned";
  case FindingKind::OutOfRange:
    return "out-of-range";
  case FindingKind::Barrier:
    return "barrier";
  case FindingKind::Collective:
    return "collective";
  case FindingKind::Registers:
    return "registers";
  case FindingKind::Division:
    return "division";
  case FindingKind::Trap:
    return "trap";
  case FindingKind::Endless:
    return "endless";
  }
  return "unknown";
}

bool Report::has(FindingKind kind) const {
  for (const Finding &finding : findings)
    if (finding.kind == kind)
      return true;
  return false;
}

std::string Report::str() const {
  std::string text;
  for (const Finding &finding : findings)
    text += finding.message + "\n";
  if (numFindings > findings.size())
    text += std::to_string(numFindings - findings.size()) + " more findings\n";
  return text;
}

Device::Device() : state(std::make_unique<State>()) {}
Device::~Device() = default;
Device::Device(Device &&) noexcept = default;
Device &Device::operator=(Device &&) noexcept = default;

void Device::addBuffer(void *base, size_t bytes, StringRef name,
                       bool initialised, bool readOnly) {
  state->add(base, bytes, name, initialised, readOnly);
}

void Device::clear() { *state = State(); }

size_t Device::countUninitialised(const void *base) const {
  const Region *region = state->find(reinterpret_cast<uintptr_t>(base), 1);
  return region ? region->countUninitialised() : 0;
}

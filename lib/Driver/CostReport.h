//===- CostReport.h - What prefill-opt cost prints ---------------*- C++ -*-==//
//
// Private to lib/Driver.
//
//===----------------------------------------------------------------------===//
#ifndef PREFILL_LIB_DRIVER_COSTREPORT_H
#define PREFILL_LIB_DRIVER_COSTREPORT_H

#include "CostModel.h"
#include "prefill/Driver/CompilerOptions.h"

namespace prefill {

/// One row of the table.
struct CostRow {
  std::string tokens; ///< a number, or "4 prompts" of a batch
  std::string transform;
  GraphCost cost;
};

struct CostReport {
  CostDevice device;
  std::vector<CostRow> rows;
  std::vector<std::string> notes; ///< a line each
};

void printCostTable(llvm::raw_ostream &os, const CostReport &report,
                    const CompilerOptions &options);
void printCostJSON(llvm::raw_ostream &os, const CostReport &report,
                   const CompilerOptions &options);

} // namespace prefill

#endif

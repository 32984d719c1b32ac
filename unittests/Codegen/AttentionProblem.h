//===- AttentionProblem.h - One head, its kernel and its truth --*- C++ -*-===//
#ifndef PREFILL_UNITTESTS_CODEGEN_ATTENTIONPROBLEM_H
#define PREFILL_UNITTESTS_CODEGEN_ATTENTIONPROBLEM_H

#include "KernelHarness.h"
#include <cstdint>
#include <set>
#include <string>
#include <vector>

namespace prefill::harness {

/// Attention of one head. Rows of every matrix end at an unreadable gap, so
/// that reading past a row's or a matrix's end shows in the result or crashes.
struct Problem {
  Problem(const KernelSpec &spec, int64_t queries, int64_t keys,
          unsigned seed = 1);

  KernelSpec spec;
  int64_t queries, keys, position;
  int64_t qStride, kStride, vStride, oStride;
  std::vector<float> q, k, v; ///< [rows][stride], values that storage can hold
  std::vector<float> bias;    ///< [queries][keys], or broadcast by strides
  int64_t biasRowStride = 0, biasKeyStride = 1;
  std::vector<uint8_t> keyMask;
  std::vector<int32_t> qSegment, kSegment;
  float scale, sink = 0.5f;
  /// Per query tile: blocks that are visited and gathered columns. Empty: all
  /// blocks that any row may see.
  std::vector<std::vector<uint32_t>> blocks;
  std::vector<std::vector<int32_t>> columns;
  /// Declares blocks as wholly visible where they are.
  bool useFullBlocks = true;
  float skip = 0;      ///< with a plan that skips; 0: -inf
  float tolerance = 0; ///< of the error relative to the row's norm; 0: default

  bool isVisible(int64_t row, int64_t key) const;
  /// Runs the kernel over all tiles and compares with float64. Empty if right.
  std::string check(const CpuTarget &target);
  /// The same for the score function.
  std::string checkScores(const CpuTarget &target);

  std::vector<float> o, lse; ///< of the last check
  int64_t roundCount = 0, leftOutCount = 0;

private:
  double score(int64_t row, int64_t key) const;
  void leaveOut(int64_t tile, const std::vector<std::vector<int64_t>> &rounds);
  bool isVisited(int64_t tile, int64_t key) const;
  std::vector<uint32_t> visitedBlocks(int64_t tile) const;
  std::set<std::pair<int64_t, int64_t>> leftOut; ///< (tile, key)
};

} // namespace prefill::harness

#endif

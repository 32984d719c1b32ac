//===- PackTest.cpp - Plans, rows and views of packs ----------------------===//
#include "prefill/pack.h"
#include "gtest/gtest.h"

#include <numeric>
#include <random>
#include <string>
#include <vector>

namespace {

struct Plan {
  prefill_context context{};
  std::vector<int64_t> prompts, starts;
  size_t packs = 0;
  double gain = 0;
  prefill_status status;

  Plan(const std::vector<int64_t> &lengths, int64_t capacity = 0,
       int32_t algorithm = PREFILL_PACK_FFD, double minGain = 0)
      : prompts(lengths.size()), starts(lengths.size() + 1) {
    prefill_pack_options options{algorithm, capacity, minGain};
    prefill_pack_result result{prompts.data(), starts.data(), 0, 0};
    status = prefill_pack_plan(&context, lengths.data(), lengths.size(),
                               &options, &result);
    packs = result.packs;
    gain = result.gain;
  }

  std::vector<int64_t> pack(size_t p) const {
    return {prompts.begin() + starts[p], prompts.begin() + starts[p + 1]};
  }
};

using Numbers = std::vector<int64_t>;

TEST(Pack, Plan) {
  Plan plan({5, 9, 3, 7, 1}, 10);
  ASSERT_EQ(plan.status, PREFILL_OK) << plan.context.message;
  ASSERT_EQ(plan.packs, 3u);
  EXPECT_EQ(plan.pack(0), Numbers({1, 4}));
  EXPECT_EQ(plan.pack(1), Numbers({3, 2}));
  EXPECT_EQ(plan.pack(2), Numbers({0}));
  EXPECT_DOUBLE_EQ(plan.gain, 45.0 / 25);
  Plan none({});
  EXPECT_EQ(none.status, PREFILL_OK);
  EXPECT_EQ(none.packs, 0u);
}

TEST(Pack, TiesKeepTheirOrder) {
  Plan plan({4, 8, 4, 8, 4}, 100, PREFILL_PACK_FFD, 1);
  ASSERT_EQ(plan.packs, 1u);
  EXPECT_EQ(plan.pack(0), Numbers({1, 3, 0, 2, 4}));
}

TEST(Pack, NothingToGain) {
  Plan refused({8, 8, 8});
  ASSERT_EQ(refused.packs, 3u);
  EXPECT_EQ(refused.pack(1), Numbers({1}));
  EXPECT_EQ(Plan({8, 8, 8}, 0, PREFILL_PACK_FFD, 1).packs, 1u);
}

TEST(Pack, ExactBeatsFirstFit) {
  std::vector<int64_t> lengths = {8, 6, 3, 3, 2, 2};
  EXPECT_EQ(Plan(lengths, 12, PREFILL_PACK_FFD, 1).packs, 3u);
  EXPECT_EQ(Plan(lengths, 12, PREFILL_PACK_EXACT, 1).packs, 2u);
}

TEST(Pack, EveryPromptOnceAndWithinTheCapacity) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    std::vector<int64_t> lengths(1 + random() % 12);
    for (int64_t &length : lengths)
      length = 1 + random() % 60;
    size_t few = 0;
    for (int32_t algorithm : {PREFILL_PACK_EXACT, PREFILL_PACK_FFD}) {
      Plan plan(lengths, 64, algorithm, 1);
      ASSERT_EQ(plan.status, PREFILL_OK);
      Numbers seen = plan.prompts;
      std::sort(seen.begin(), seen.end());
      Numbers all(lengths.size());
      std::iota(all.begin(), all.end(), 0);
      EXPECT_EQ(seen, all);
      for (size_t p = 0; p < plan.packs; ++p) {
        int64_t rows = 0;
        for (int64_t prompt : plan.pack(p))
          rows += lengths[prompt];
        EXPECT_LE(rows, 64);
      }
      if (algorithm == PREFILL_PACK_EXACT)
        few = plan.packs;
      EXPECT_LE(few, plan.packs);
      EXPECT_LE(plan.packs * 9, 11 * few + 9);
    }
  }
}

TEST(Pack, WrongPlans) {
  auto message = [](Plan plan) {
    EXPECT_EQ(plan.status, PREFILL_INVALID_ARGUMENT);
    return std::string(plan.context.message);
  };
  EXPECT_EQ(message(Plan({1, 0})), "prompt 1 is empty: leave it out");
  EXPECT_EQ(message(Plan({3}, 2)),
            "prompt 0 has 3 tokens, more than the capacity 2");
  EXPECT_EQ(message(Plan({1}, 0, 7)),
            "algorithm 7: expected ffd (0) or exact (1)");
  EXPECT_EQ(message(Plan({1}, -1)),
            "expected a capacity and a gain of 0 or more, got -1 and 0");
  std::vector<int64_t> many(21, 1);
  many[0] = 9;
  EXPECT_EQ(message(Plan(many, 0, PREFILL_PACK_EXACT)),
            "exact packs at most 20 prompts, got 21: use ffd");
  EXPECT_EQ(message(Plan({INT64_MAX, INT64_MAX})).substr(0, 14),
            "prompt 0 has 9");
  EXPECT_EQ(prefill_pack_plan(nullptr, nullptr, 0, nullptr, nullptr),
            PREFILL_INVALID_ARGUMENT);
}

TEST(Pack, Rows) {
  const int64_t a[] = {10, 11}, b[] = {20}, c[] = {30, 31, 32};
  const int64_t *ids[] = {a, b, c};
  const int64_t lengths[] = {2, 1, 3}, prompts[] = {2, 1, 0};
  Numbers tokens(6), starts(4), positions(6), last(3);
  prefill_context context{};
  prefill_pack_inputs inputs{tokens.data(), starts.data(), positions.data(),
                             last.data()};
  ASSERT_EQ(prefill_pack_fill(&context, ids, lengths, prompts, 3, &inputs),
            PREFILL_OK);
  EXPECT_EQ(tokens, Numbers({30, 31, 32, 20, 10, 11}));
  EXPECT_EQ(starts, Numbers({0, 3, 4, 6}));
  EXPECT_EQ(positions, Numbers({0, 1, 2, 0, 0, 1}));
  EXPECT_EQ(last, Numbers({2, 3, 5}));
}

/// Element [0, 0, ...] of the view of `prompt`, and the view's shape.
struct View {
  prefill_context context{};
  int64_t shape[3] = {}, strides[3] = {};
  DLTensor tensor{};
  prefill_status status;

  View(const std::vector<float> &data, std::vector<int64_t> dims, size_t prompt,
       const Numbers &starts) {
    DLTensor output{};
    output.data = const_cast<float *>(data.data());
    output.ndim = int32_t(dims.size());
    output.dtype = {kDLFloat, 32, 1};
    output.shape = dims.data();
    status =
        prefill_pack_view(&context, &output, starts.data(), starts.size() - 1,
                          prompt, shape, strides, &tensor);
  }
  float at(int64_t i, int64_t j, int64_t k = 0) const {
    auto *data = reinterpret_cast<const float *>(
        static_cast<const char *>(tensor.data) + tensor.byte_offset);
    return tensor.ndim == 2
               ? data[i * strides[0] + j * strides[1]]
               : data[i * strides[0] + j * strides[1] + k * strides[2]];
  }
};

TEST(Pack, Views) {
  const Numbers starts = {0, 3, 4, 6};
  std::vector<float> data(2 * 6 * 4);
  std::iota(data.begin(), data.end(), 0.f);
  View cache(data, {1, 2, 6, 4}, 2, starts);
  ASSERT_EQ(cache.status, PREFILL_OK) << cache.context.message;
  EXPECT_EQ(Numbers(cache.shape, cache.shape + 3), Numbers({2, 2, 4}));
  EXPECT_EQ(cache.at(1, 1, 3), 1 * 24 + 5 * 4 + 3);
  View rows(data, {1, 6, 8}, 1, starts);
  EXPECT_EQ(Numbers(rows.shape, rows.shape + 2), Numbers({1, 8}));
  EXPECT_EQ(rows.at(0, 5), 3 * 8 + 5);
  // Logits of the last rows alone.
  View last(data, {1, 3, 16}, 2, starts);
  EXPECT_EQ(Numbers(last.shape, last.shape + 2), Numbers({1, 16}));
  EXPECT_EQ(last.at(0, 1), 2 * 16 + 1);
  View wrong(data, {1, 5, 8}, 0, starts);
  EXPECT_EQ(wrong.status, PREFILL_INVALID_SHAPE);
  EXPECT_STREQ(wrong.context.message,
               "expected 6 rows in axis 1 of the output, got 5");
  EXPECT_EQ(View(data, {2, 6, 4}, 0, starts).status, PREFILL_INVALID_SHAPE);
  EXPECT_EQ(View(data, {1, 6, 8}, 3, starts).status, PREFILL_INVALID_ARGUMENT);
}

} // namespace

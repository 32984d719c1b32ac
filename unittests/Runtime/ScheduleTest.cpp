//===- ScheduleTest.cpp - Hybrid batches ----------------------------------===//

#include "prefill/schedule.h"
#include "gtest/gtest.h"
#include <random>
#include <vector>

namespace {

using Request = prefill_schedule_request;

struct Scheduler {
  prefill_schedule_options options{sizeof(prefill_schedule_options), 16, 4, 1};
  std::vector<int64_t> rows;
  int64_t total = -1;

  prefill_status run(const std::vector<Request> &requests) {
    rows.assign(requests.size(), -1);
    return prefill_schedule(&options, requests.data(), requests.size(),
                            rows.data(), &total);
  }
};

using Rows = std::vector<int64_t>;

TEST(Schedule, GeneratingThenBegunThenWaiting) {
  Scheduler s;
  // Waiting, generating, begun, done, generating.
  std::vector<Request> requests = {
      {30, 0, 0}, {5, 5, 0}, {20, 10, 0}, {9, 9, 1}, {7, 7, 0}};
  ASSERT_EQ(s.run(requests), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({4, 1, 10, 0, 1}));
  EXPECT_EQ(s.total, 16);
  // The earlier of two begun prompts takes what is left.
  requests[0].computed = 3;
  ASSERT_EQ(s.run(requests), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({14, 1, 0, 0, 1}));
}

TEST(Schedule, NoMoreRequestsThanTheCacheHolds) {
  Scheduler s;
  s.options.max_requests = 2;
  ASSERT_EQ(s.run({{3, 3, 0}, {4, 0, 0}, {4, 0, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({1, 4, 0}));
  // One that was cancelled leaves its place.
  ASSERT_EQ(s.run({{3, 3, 1}, {4, 0, 0}, {4, 0, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({0, 4, 4}));
}

TEST(Schedule, MultiplesOfATile) {
  Scheduler s;
  s.options.multiple = 8;
  // 16 rows: nothing to cut.
  ASSERT_EQ(s.run({{3, 3, 0}, {100, 8, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({1, 15}));
  // 13 rows at most: the chunk is cut to 7, and 1 + 7 = 8.
  s.options.budget = 13;
  ASSERT_EQ(s.run({{3, 3, 0}, {100, 8, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({1, 7}));
  EXPECT_EQ(s.total, 8);
  // A chunk that ends its prompt stays, and so does one of nothing else.
  ASSERT_EQ(s.run({{3, 3, 0}, {100, 96, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({1, 4}));
  s.options.budget = 5;
  ASSERT_EQ(s.run({{3, 3, 0}, {100, 8, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({1, 4}));
  // 5 left of 13 for the last: cutting them all would stop it.
  s.options.budget = 13;
  ASSERT_EQ(s.run({{12, 1, 0}, {100, 8, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({11, 2}));
}

TEST(Schedule, Nothing) {
  Scheduler s;
  ASSERT_EQ(s.run({}), PREFILL_OK);
  EXPECT_EQ(s.total, 0);
  ASSERT_EQ(prefill_schedule(&s.options, nullptr, 0, nullptr, &s.total),
            PREFILL_OK);
  ASSERT_EQ(s.run({{1, 1, 1}}), PREFILL_OK);
  EXPECT_EQ(s.total, 0);
  // A prompt of one token.
  ASSERT_EQ(s.run({{1, 0, 0}}), PREFILL_OK);
  EXPECT_EQ(s.rows, Rows({1}));
}

TEST(Schedule, WrongArguments) {
  auto refused = [](const prefill_schedule_options &options,
                    const std::vector<Request> &requests) {
    Scheduler s;
    s.options = options;
    EXPECT_EQ(s.run(requests), PREFILL_INVALID_ARGUMENT);
    EXPECT_EQ(s.rows, Rows(requests.size(), 0));
    EXPECT_EQ(s.total, 0);
  };
  const uint32_t size = sizeof(prefill_schedule_options);
  refused({size, 0, 1, 1}, {{1, 0, 0}});
  refused({size, 4, 0, 1}, {{1, 0, 0}});
  refused({size, 4, 5, 1}, {{1, 0, 0}}); // could starve a prompt for ever
  refused({size, 4, 1, 0}, {{1, 0, 0}});
  refused({size - 1, 4, 1, 1}, {{1, 0, 0}});
  refused({size, 4, 1, 1}, {{0, 0, 0}});
  refused({size, 4, 1, 1}, {{2, 3, 0}});
  refused({size, 4, 1, 1}, {{2, -1, 0}});
  refused({size, 4, 1, 1}, {{2, 2, 0}, {2, 1, 0}}); // two in a cache of one
  int64_t total = 7;
  EXPECT_EQ(prefill_schedule(nullptr, nullptr, 0, nullptr, &total),
            PREFILL_INVALID_ARGUMENT);
  EXPECT_EQ(total, 0);
  Scheduler s;
  Request request{1, 0, 0};
  EXPECT_EQ(prefill_schedule(&s.options, &request, 1, nullptr, &total),
            PREFILL_INVALID_ARGUMENT);
  EXPECT_EQ(prefill_schedule(&s.options, nullptr, 0, nullptr, nullptr),
            PREFILL_INVALID_ARGUMENT);
}

/// Whatever arrives, is cancelled or ends: no batch is too large, none leaves
/// out a request that generates, and all of them end.
TEST(Schedule, EverythingIsServed) {
  std::mt19937 random(7);
  auto below = [&](int64_t n) {
    return std::uniform_int_distribution<int64_t>(0, n - 1)(random);
  };
  for (int round = 0; round < 200; ++round) {
    Scheduler s;
    s.options.budget = 1 + below(40);
    s.options.max_requests = 1 + below(s.options.budget);
    s.options.multiple = 1 + below(12);
    std::vector<Request> requests(static_cast<size_t>(1 + below(12)));
    std::vector<int64_t> wanted;
    for (Request &r : requests) {
      r = {1 + below(90), 0, 0};
      wanted.push_back(below(20));
    }
    int steps = 0;
    for (;; ++steps) {
      ASSERT_LT(steps, 5000);
      ASSERT_EQ(s.run(requests), PREFILL_OK);
      int64_t sum = 0, running = 0;
      for (size_t i = 0; i < requests.size(); ++i) {
        Request &r = requests[i];
        const bool generates = !r.done && r.computed == r.prompt;
        ASSERT_GE(s.rows[i], 0);
        ASSERT_EQ(s.rows[i], generates ? 1 : r.done ? 0 : s.rows[i]);
        sum += s.rows[i];
        if (generates)
          r.done = --wanted[i] <= 0;
        else
          ASSERT_LE(r.computed += s.rows[i], r.prompt);
        running += !r.done && r.computed > 0;
        if (below(300) == 0)
          r.done = 1;
      }
      ASSERT_EQ(sum, s.total);
      ASSERT_LE(sum, s.options.budget);
      ASSERT_LE(running, s.options.max_requests);
      if (!sum)
        break;
    }
    for (const Request &r : requests)
      EXPECT_TRUE(r.done);
  }
}

} // namespace

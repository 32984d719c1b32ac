//===- PoolTest.cpp - The thread pool
//--------------------------------------===//
#include "prefill/prefill.h"
#include "gtest/gtest.h"
#include <atomic>
#include <thread>
#include <vector>

namespace {

TEST(Pool, RunsEveryIndexOnce) {
  for (size_t threads : {0, 1, 2, 5}) {
    prefill_pool *pool = prefill_pool_create(threads);
    ASSERT_NE(pool, nullptr);
    for (size_t count : {0, 1, 2, 3, 100, 1000}) {
      std::vector<std::atomic<int>> hits(count);
      prefill_pool_parallel_for(
          pool, count,
          [](void *data, size_t i) {
            ++(*static_cast<std::vector<std::atomic<int>> *>(data))[i];
          },
          &hits);
      for (auto &hit : hits)
        EXPECT_EQ(hit, 1);
    }
    prefill_pool_destroy(pool);
  }
}

TEST(Pool, ManyShortLoops) {
  prefill_pool *pool = prefill_pool_create(4);
  std::atomic<size_t> sum{0};
  for (int n = 0; n < 20000; ++n)
    prefill_pool_parallel_for(
        pool, 4,
        [](void *data, size_t i) {
          *static_cast<std::atomic<size_t> *>(data) += i;
        },
        &sum);
  EXPECT_EQ(sum, 20000u * 6);
  prefill_pool_destroy(pool);
}

TEST(Pool, NestedLoopsRunOnTheCaller) {
  struct Data {
    prefill_pool *pool;
    std::atomic<int> inner{0};
  } data;
  data.pool = prefill_pool_create(3);
  prefill_pool_parallel_for(
      data.pool, 10,
      [](void *outer, size_t) {
        prefill_pool_parallel_for(
            static_cast<Data *>(outer)->pool, 10,
            [](void *d, size_t) { ++static_cast<Data *>(d)->inner; }, outer);
      },
      &data);
  EXPECT_EQ(data.inner, 100);
  prefill_pool_destroy(data.pool);
}

TEST(Pool, SeveralCallers) {
  prefill_pool *pool = prefill_pool_create(3);
  std::atomic<int> sum{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c)
    callers.emplace_back([&] {
      for (int n = 0; n < 500; ++n)
        prefill_pool_parallel_for(
            pool, 8,
            [](void *d, size_t) { ++*static_cast<std::atomic<int> *>(d); },
            &sum);
    });
  for (auto &caller : callers)
    caller.join();
  EXPECT_EQ(sum, 4 * 500 * 8);
  prefill_pool_destroy(pool);
}

TEST(Pool, NullIsTheCaller) {
  std::atomic<int> sum{0};
  prefill_pool_parallel_for(
      nullptr, 5,
      [](void *d, size_t) { ++*static_cast<std::atomic<int> *>(d); }, &sum);
  EXPECT_EQ(sum, 5);
  prefill_pool_destroy(nullptr);
}

} // namespace

// pool_test.cpp: parallel_for() and parallel_ranges() run every task exactly once and return after the last one.
#include "../../export/engine.hpp"

#include <gtest/gtest.h>

namespace pool_test {

using namespace pocket;

TEST(Pool, RunsEveryTaskOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    Pool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int n : {0, 1, 2, 3, 7, 64, 1000}) {
      std::vector<int> runs(size_t(n), 0);  // not atomic: parallel_for() must synchronize
      pool.parallel_for(n, [&](int task, int) { runs[size_t(task)]++; });
      EXPECT_EQ(runs, std::vector<int>(size_t(n), 1)) << threads << " threads, " << n << " tasks";
    }
  }
}

TEST(Pool, PassesTheThreadIndexToTasks) {
  Pool pool(4);
  std::vector<int> by_thread(4, 0);  // each thread writes its own element
  for (int round = 0; round < 200; round++)
    pool.parallel_for(50, [&](int, int thread) {
      ASSERT_TRUE(thread >= 0 && thread < 4) << thread;
      by_thread[size_t(thread)]++;
    });
  EXPECT_EQ(by_thread[0] + by_thread[1] + by_thread[2] + by_thread[3], 200 * 50);
}

TEST(Pool, WakesSleepingWorkers) {
  Pool pool(3);
  for (int round = 0; round < 30; round++) {
    std::atomic<int> sum{0};
    pool.parallel_for(20, [&](int task, int) { sum += task; });
    EXPECT_EQ(sum, 190);
    std::this_thread::sleep_for(std::chrono::microseconds(round % 3 == 0 ? 2000 : 60 * round));
  }
}

// More jobs than the job number of a ticket can count, so that it wraps.
TEST(Pool, RunsManySmallJobs) {
  Pool pool(2);
  int64_t total = 0;
  for (int job = 0; job < 150000; job++) {
    int parts[3] = {};
    pool.parallel_for(3, [&](int task, int) { parts[task] = job + task; });
    total += parts[0] + parts[1] + parts[2];
    ASSERT_EQ(parts[2], job + 2);
  }
  EXPECT_EQ(total, int64_t(3) * 150000 * 149999 / 2 + int64_t(3) * 150000);
}

TEST(Pool, AWorkerTakesATaskWhileTheCallerWaits) {
  Pool pool(2);
  std::atomic<bool> other{false};
  bool helped = false;
  for (int round = 0; round < 100 && !helped; round++) {  // the caller's task waits until the worker has taken one
    other = false;
    pool.parallel_for(2, [&](int, int thread) {
      if (thread == 1) other = true;
      const auto start = std::chrono::steady_clock::now();
      while (thread == 0 && !other && std::chrono::steady_clock::now() - start < std::chrono::milliseconds(100))
        std::this_thread::yield();
    });
    helped = other;
  }
  EXPECT_TRUE(helped);
}

TEST(Pool, IsDestroyedWithAndWithoutJobs) {
  for (int i = 0; i < 100; i++) {
    Pool pool(i % 5 + 1);
    if (i % 2) pool.parallel_for(10, [](int, int) {});
  }
}

TEST(Pool, RangesCoverEveryTaskOnceInWholeUnits) {
  for (const int threads : {1, 2, 3, 8}) {
    Pool pool(threads);
    for (const int unit : {1, 2, 4})
      for (const int n : {0, 1, 2, 3, 7, 16, 33, 144, 1000, 5001, 20000}) {
        std::vector<int> runs(size_t(n), 0);
        std::atomic<int> broken{0}, calls{0};
        pool.parallel_ranges(n, unit, 1e9, [&](int first, int end) {
          broken += first % unit != 0 || (end % unit != 0 && end != n);
          calls++;
          for (int i = first; i < end; i++) runs[size_t(i)]++;
        });
        EXPECT_EQ(runs, std::vector<int>(size_t(n), 1)) << threads << " threads, " << n << " tasks";
        EXPECT_EQ(broken, 0) << n << " in units of " << unit;
        EXPECT_LE(calls, 16 * threads + 15) << n << " in units of " << unit;
      }
  }
}

TEST(Pool, SmallJobsRunOnTheCaller) {
  Pool pool(4);
  for (int round = 0; round < 100; round++) {
    int next = 0;
    pool.parallel_for(50, 100, [&](int task, int thread) {
      EXPECT_EQ(thread, 0);
      EXPECT_EQ(task, next++);
    });
    EXPECT_EQ(next, 50);
  }
}

TEST(Pool, ZeroOrFewerThreadsMeansOne) {
  for (const int threads : {0, -5}) {
    Pool pool(threads);
    EXPECT_EQ(pool.threads(), 1);
    int tasks = 0;
    pool.parallel_for(10, [&](int task, int thread) {
      EXPECT_EQ(thread, 0);
      EXPECT_EQ(task, tasks++);
    });
    EXPECT_EQ(tasks, 10);
  }
}

}  // namespace pool_test

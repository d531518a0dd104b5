// limits_test.cpp: what the engine does when the system refuses something or surprises it: memory that runs out at any
// allocation, a number of CPUs that grows, a fork, a floating-point mode of the host, signals.
#include "../../export/engine.hpp"

#include <dirent.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <new>

#include "../support/tiny_model.hpp"

namespace limits_test {

// The next allocation of this thread that fails, counted from 0; -1: none.
thread_local int failing_allocation = -1;
thread_local bool allocation_failed = false;

// The number of CPUs that std::thread::hardware_concurrency reports next; 0: the real one.
std::atomic<unsigned> reported_cpus{0};

}  // namespace limits_test

#if !defined(POCKET_SANITIZED)
void* operator new(size_t n) {
  using namespace limits_test;
  if (failing_allocation >= 0 && failing_allocation-- == 0) {
    allocation_failed = true;
    throw std::bad_alloc();
  }
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
__attribute__((noinline)) void release_memory(void* p) {
  std::free(p);
}  // a function of its own: g++ warns of free() after an inlined new
void operator delete(void* p) noexcept { release_memory(p); }
void operator delete(void* p, size_t) noexcept { release_memory(p); }

unsigned std::thread::hardware_concurrency() noexcept {
  const unsigned cpus = limits_test::reported_cpus;
  if (cpus == 0) return unsigned(sysconf(_SC_NPROCESSORS_ONLN));
  limits_test::reported_cpus = cpus * 8;
  return cpus;
}
#endif

namespace limits_test {

using namespace pocket;
using tiny::MemoryModel;
using tiny::random_ids;
using tiny::small_config;

/// Runs f once for each of its allocations, which then fails, and once more without a failure. f returns the error of
/// the engine, or "" after it has checked the result.
template <class F> void with_every_allocation_failing(const F& f) {
  int reported = 0;
  for (int n = 0;; n++) {
    std::string error;
    allocation_failed = false;
    failing_allocation = n;
    try {
      error = f();
    } catch (...) {
      failing_allocation = -1;
      FAIL() << "an exception crossed the API at allocation " << n;
    }
    failing_allocation = -1;
    reported += !error.empty();
    if (allocation_failed) continue;
    EXPECT_GT(reported, 0) << "no failure was reported";
    EXPECT_EQ(error, "");
    return;
  }
}

#if !defined(POCKET_SANITIZED)
TEST(OutOfMemory, OpenFailsAndClosesTheModel) {
  const TemporaryFolder folder;
  const MemoryModel m(small_config(), Type::q4);
  const std::string path = folder.write("model.bin", tiny::text_of(m.bytes));
  Model model;
  for (const Load load : {Load::map, Load::copy}) {
    with_every_allocation_failing([&] { return model.open(path.c_str(), load) ? std::string() : model.error; });
    ASSERT_TRUE(model.open(path.c_str(), load));
  }
  with_every_allocation_failing([&] {
    EXPECT_FALSE(model.open("no such model.bin"));
    EXPECT_NE(model.error, "");
    return allocation_failed ? model.error : std::string();
  });
  EXPECT_NE(Session(model).error, "") << "a session on a model that is not open";
}

TEST(OutOfMemory, SessionsReportIt) {
  const MemoryModel m(small_config(), Type::q4);
  with_every_allocation_failing([&] { return Session(m.model, {0, 2, KvType::automatic, nullptr}).error; });
}

TEST(OutOfMemory, ForwardReportsItAndKeepsThePosition) {
  const MemoryModel m(small_config(), Type::q4);
  Session session(m.model, {0, 1, KvType::automatic, nullptr});
  const int good[] = {1, 2}, bad[] = {1, -1};
  size_t seen = 0;
  session.observe([&](const Observation& o) { seen += size_t(o.size); });
  with_every_allocation_failing([&] {
    const int before = session.position();
    const float* logits = session.forward(good, 2);
    EXPECT_EQ(session.position(), logits ? before + 2 : before);
    session.rewind(before);
    return logits ? std::string() : session.error;
  });
  EXPECT_GT(seen, 0u);
  for (int n = 0; n < 20; n++) {
    failing_allocation = n;
    EXPECT_EQ(session.forward(bad, 2), nullptr);
    failing_allocation = -1;
    EXPECT_NE(session.error, "");
  }
}

TEST(OutOfMemory, GeneratingIsNoSilentGreedyChoice) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> prompt = {1, 2, 3};
  int expected[12] = {}, ids[12];
  const auto text = [&](int* out) {
    Session session(m.model, {0, 1, KvType::automatic, nullptr});
    Sampler pick({1.f, 0.9f, 7});
    int n = 0;
    const auto keep = [&](int id) {
      out[n++] = id;
      return true;
    };
    const bool good = session.error.empty() && generate(session, pick, prompt, 12, {}, keep);
    EXPECT_EQ(good, session.error.empty());
    return session.error;
  };
  ASSERT_EQ(text(expected), "");
  with_every_allocation_failing([&] {
    const std::string error = text(ids);
    EXPECT_TRUE(!error.empty() || std::equal(ids, ids + 12, expected)) << "another text";
    return error;
  });
}

TEST(OutOfMemory, SamplerReturnsMinusOne) {
  const float logits[] = {1, 2, 3};
  Sampler pick({1.f, 0.9f, 7});
  failing_allocation = 0;
  EXPECT_EQ(pick(logits, 3), -1);
  failing_allocation = -1;
  EXPECT_GE(pick(logits, 3), 0);
}

TEST(OutOfMemory, ListsAreEmpty) {
  failing_allocation = 0;
  EXPECT_TRUE(kernel_names().empty());
  failing_allocation = -1;
  EXPECT_FALSE(kernel_names().empty());
}

TEST(Cpus, AreCountedOnce) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(40, m.model.vocab_size(), 3);
  reported_cpus = 2;
  Session session(m.model);
  reported_cpus = 0;
  EXPECT_EQ(session.threads(), 2);
  const float* logits = session.forward(ids.data(), ids.size());
  ASSERT_NE(logits, nullptr) << session.error;
  Session other(m.model, {0, 1, KvType::automatic, nullptr});
  EXPECT_TRUE(tiny::same_bits(logits, other.forward(ids.data(), ids.size()), size_t(m.model.vocab_size())));
}
#endif

TEST(PoolFailure, BadAllocOfATaskReachesTheCaller) {
  Pool pool(3);
  for (int failing = 0; failing < 6; failing++) {
    std::atomic<int> done{0};
    const auto task = [&](int i, int) {
      if (i == failing) throw std::bad_alloc();
      done++;
    };
    EXPECT_THROW(pool.parallel_for(6, task), std::bad_alloc);
    EXPECT_EQ(done, 5) << "the other tasks ran";
    pool.parallel_for(6, [&](int, int) { done++; });
    EXPECT_EQ(done, 11) << "the pool works on";
  }
}

// ---- fork ----

/// Runs f in a child of a fork. Returns its exit status, 124 if it does not end.
template <class F> int in_child(const F& f) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGALRM, SIG_DFL);
    alarm(20);
    _exit(f());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 124;
}

TEST(Fork, SessionsWorkAndEndInTheChild) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(30, m.model.vocab_size(), 5);
  auto session = std::make_unique<Session>(m.model, SessionOptions{0, 3, KvType::automatic, nullptr});
  ASSERT_NE(session->forward(ids.data(), 10), nullptr);
  usleep(1000);  // the workers sleep
  const auto rest = [&] {
    const float* logits = session->forward(&ids[10], 20);
    return logits ? hash_logits(logits, m.model.vocab_size()) : 0;
  };
  EXPECT_EQ(in_child([&] {
              session.reset();
              return 0;
            }),
            0);
  int results[2];
  ASSERT_EQ(pipe(results), 0);
  EXPECT_EQ(in_child([&] {
              const uint64_t hash = rest();
              session.reset();
              return write(results[1], &hash, sizeof hash) == sizeof hash ? 0 : 1;
            }),
            0);
  uint64_t hash = 0;
  ASSERT_EQ(read(results[0], &hash, sizeof hash), ssize_t(sizeof hash));
  EXPECT_EQ(hash, rest()) << "same bits in the child";
  close(results[0]);
  close(results[1]);
}

// ---- The host's modes ----

TEST(FloatModeOfHost, ChangesNoBits) {
  const MemoryModel m(small_config(), Type::q4);
  const std::vector<int> ids = random_ids(40, m.model.vocab_size(), 9);
  const auto run = [&](int& choice) {
    Session session(m.model, {0, 2, KvType::automatic, nullptr});
    Sampler pick({1.f, 0.9f, 3});
    const float* logits = session.forward(ids.data(), ids.size());
    choice = pick(logits, m.model.vocab_size());
    return hash_logits(logits, m.model.vocab_size());
  };
  int choice = 0;
  const uint64_t expected = run(choice);
  for (const int rounding : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
    std::fesetround(rounding);
#if defined(__x86_64__)
    _mm_setcsr(_mm_getcsr() | 0x8040);  // flush denormal numbers to zero
    const unsigned mode = _mm_getcsr() & 0xffc0;
#endif
    int found_choice = 0;
    const uint64_t found = run(found_choice);
    const int after = std::fegetround();
#if defined(__x86_64__)
    EXPECT_EQ(_mm_getcsr() & 0xffc0, mode) << "the mode of the caller is restored";
#endif
    std::fesetenv(FE_DFL_ENV);
    EXPECT_EQ(after, rounding);
    EXPECT_EQ(found, expected) << "rounding mode " << rounding;
    EXPECT_EQ(found_choice, choice);
  }
}

#if defined(__linux__)
TEST(Signals, AreBlockedInWorkers) {
  const Pool pool(3);
  DIR* tasks = opendir("/proc/self/task");
  ASSERT_NE(tasks, nullptr);
  int workers = 0;
  while (const dirent* entry = readdir(tasks)) {
    const int id = std::atoi(entry->d_name);
    if (id == 0 || id == getpid()) continue;
    uint64_t blocked = ~uint64_t(0);
    const auto is_blocked = [&](int signal) { return blocked >> (signal - 1) & 1; };
    for (int wait = 0; wait < 1000 && is_blocked(SIGSEGV); wait++) {  // while a thread is created, all are blocked
      const std::string status = read_file("/proc/self/task/" + std::string(entry->d_name) + "/status");
      const size_t at = status.find("SigBlk:");
      ASSERT_NE(at, std::string::npos);
      blocked = std::strtoull(status.c_str() + at + 7, nullptr, 16);
      usleep(1000);
    }
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGALRM, SIGUSR1}) EXPECT_TRUE(is_blocked(signal)) << signal;
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) EXPECT_FALSE(is_blocked(signal)) << signal;
    workers++;
  }
  closedir(tasks);
  EXPECT_EQ(workers, 2);
  sigset_t mine;
  pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  EXPECT_FALSE(sigismember(&mine, SIGINT)) << "the caller's mask is restored";
}
#endif

}  // namespace limits_test

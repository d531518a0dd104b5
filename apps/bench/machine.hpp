// machine.hpp: the limits of the machine, which a model is compared with: the bandwidth of reading memory, and for each
// kernel set the int8 multiply-adds of its instruction with operands in registers.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <system_error>
#include <thread>

#include "../../export/engine.hpp"
#include "../../export/program.hpp"
#include "statistics.hpp"

namespace pocket::bench {

/// Runs f(thread) on each of `threads` threads. Returns the seconds from the common start until the last has finished.
/// Throws Failure if the system cannot start the threads.
template <class F> double time_threads(int threads, const F& f) {
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  const auto join = [&] {
    go.store(true);
    for (std::thread& t : others) t.join();
  };
  try {
    for (int i = 1; i < threads; i++)
      others.emplace_back([&, i] {
        ready.fetch_add(1);
        while (!go.load(std::memory_order_acquire)) std::this_thread::yield();
        f(i);
      });
  } catch (const std::system_error& e) {
    join();
    throw Failure{1, std::to_string(threads) + " threads: " + e.what()};
  }
  while (ready.load() < threads - 1) std::this_thread::yield();
  const double start = seconds();
  go.store(true, std::memory_order_release);
  f(0);
  join();
  return seconds() - start;
}

/// The shortest time of several tries: other programs can only slow the machine down.
template <class F> double best_seconds(int tries, int threads, const F& f) {
  double best = time_threads(threads, f);
  for (int i = 1; i < tries; i++) {
    stop_if_interrupted();
    best = std::min(best, time_threads(threads, f));
  }
  return best;
}

// ---- Reading memory ----

// Reads memory in `Streams` parallel streams, one cache line at a time, and combines it by xor. V is a register.
template <class V, int Streams> POCKET_BODY uint64_t read_body(const uint8_t* p, size_t bytes) {
  constexpr int kParts = 64 / sizeof(V);
  V sum[Streams][kParts] = {};
  const size_t stream = bytes / Streams / 64 * 64;
  for (size_t i = 0; i < stream; i += 64)
    POCKET_FOR (s, Streams)
      POCKET_FOR (part, kParts) {
        V v;
        std::memcpy(&v, p + s * stream + i + part * sizeof v, sizeof v);
        sum[s][part] ^= v;
      }
  V all = {};
  for (const auto& parts : sum)
    for (const V& v : parts) all ^= v;
  return all[0] ^ all[1];
}

typedef uint64_t Narrow __attribute__((vector_size(16)));
template <int Streams> uint64_t read_plain(const uint8_t* p, size_t n) { return read_body<Narrow, Streams>(p, n); }

#if defined(__x86_64__)
typedef uint64_t Wide __attribute__((vector_size(32)));
template <int Streams> __attribute__((target("avx2"))) uint64_t read_avx2(const uint8_t* p, size_t n) {
  return read_body<Wide, Streams>(p, n);
}
#endif

/// Measures the bandwidth of reading a block of memory that is larger than any cache.
class ReadTest {
 public:
  /// quick: use a smaller block.
  explicit ReadTest(bool quick) {
    const size_t cache = size_t(std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE)));
    const size_t all = size_t(sysconf(_SC_PHYS_PAGES)) * size_t(sysconf(_SC_PAGESIZE));
    bytes_ = std::min(std::max<size_t>(quick ? 64 << 20 : 512 << 20, (quick ? 4 : 8) * cache), all / 4);
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<uint8_t*>(p);
#ifdef MADV_HUGEPAGE
    madvise(p, bytes_, MADV_HUGEPAGE);  // a model file may be in large pages too, which are read faster
#endif
    constexpr size_t kPiece = 16 << 20;
    for (size_t at = 0; at < bytes_ && !interrupted; at += kPiece)  // allocating pages takes long
      std::memset(memory_ + at, 1, std::min(kPiece, bytes_ - at));
  }
  ~ReadTest() { munmap(memory_, bytes_); }
  ReadTest(const ReadTest&) = delete;
  ReadTest& operator=(const ReadTest&) = delete;

  /// The total bandwidth of `threads` threads in GB/s, with one stream per thread or four, whichever is faster. The
  /// median of `tries`, not the best, because the speed of a model is a median too.
  double gb_s(int threads, int tries) const {
    auto one = read_plain<1>, four = read_plain<4>;
#if defined(__x86_64__)
    if (find_kernels("avx2")) {
      one = read_avx2<1>;
      four = read_avx2<4>;
    }
#endif
    return double(bytes_) / std::min(seconds(threads, tries, one), seconds(threads, tries, four)) / 1e9;
  }

 private:
  double seconds(int threads, int tries, uint64_t (*read)(const uint8_t*, size_t)) const {
    const size_t part = bytes_ / size_t(threads);
    std::vector<double> taken;
    for (int t = 0; t < tries; t++) {
      stop_if_interrupted();
      taken.push_back(time_threads(threads, [&](int i) {
        const uint64_t sum = read(memory_ + size_t(i) * part, part);
        asm volatile("" ::"r"(sum));  // keeps the compiler from removing the loop
      }));
    }
    return median(taken);
  }

  size_t bytes_;
  uint8_t* memory_;
};

// ---- Int8 multiply-adds ----

inline constexpr int kChains = 12;  // independent sums: more than the latency of an instruction in cycles

// Each function runs n rounds; kInt8Rates has the number of multiply-adds in a round. The empty asm statements keep the
// compiler from noticing that all rounds compute the same values.
#if defined(__x86_64__)

__attribute__((target("avx2"))) inline void maddubs_rounds(long n) {
  __m256i x = _mm256_set1_epi8(1), y = x, sum[kChains] = {};
  const __m256i ones = _mm256_set1_epi16(1);
  for (long i = 0; i < n; i++)
    POCKET_FOR (c, kChains) {
      asm volatile("" : "+x"(x), "+x"(y));
      sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ones));
    }
  for (__m256i& s : sum) asm volatile("" ::"x"(s));
}

__attribute__((target("avxvnni,avx2"))) inline void dpbusd256_rounds(long n) {
  __m256i x = _mm256_set1_epi8(1), y = x, sum[kChains] = {};
  for (long i = 0; i < n; i++)
    POCKET_FOR (c, kChains) {
      asm volatile("" : "+x"(x), "+x"(y));
      sum[c] = _mm256_dpbusd_avx_epi32(sum[c], x, y);
    }
  for (__m256i& s : sum) asm volatile("" ::"x"(s));
}

__attribute__((target("avx512f,avx512vnni"))) inline void dpbusd512_rounds(long n) {
  __m512i x = _mm512_set1_epi32(0x01010101), y = x, sum[kChains] = {};
  for (long i = 0; i < n; i++)
    POCKET_FOR (c, kChains) {
      asm volatile("" : "+v"(x), "+v"(y));
      sum[c] = _mm512_dpbusd_epi32(sum[c], x, y);
    }
  for (__m512i& s : sum) asm volatile("" ::"v"(s));
}

// The operand of ldtilecfg (Intel, Architecture Instruction Set Extensions, chapter 3).
struct TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileConfig) == 64);

// Four tiles of sums, from two tiles each of A and B that are loaded in every round: four products per round.
__attribute__((target("amx-tile,amx-int8"))) inline void tile_rounds(long n) {
  TileConfig config;
  for (int i = 0; i < 8; i++) {
    config.bytes_per_row[i] = 64;
    config.rows[i] = 16;
  }
  asm volatile("ldtilecfg %0" ::"m"(config));
  alignas(64) uint8_t in[4][1024] = {}, out[1024];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (long i = 0; i < n; i++) {
    _tile_loadd(4, in[0], 64);
    _tile_loadd(5, in[1], 64);
    _tile_loadd(6, in[2], 64);
    _tile_loadd(7, in[3], 64);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, out, 64);
  asm volatile("" ::"m"(out));
  _tile_release();
}

#elif defined(__aarch64__)

typedef int32_t Neon __attribute__((vector_size(16)));

POCKET_DOTPROD inline void sdot_rounds(long n) {
  Neon x = {}, y = {}, sum[kChains] = {};
  for (long i = 0; i < n; i++)
    POCKET_FOR (c, kChains) asm volatile("sdot %0.4s, %1.16b, %2.16b" : "+w"(sum[c]) : "w"(x), "w"(y));
}

POCKET_I8MM inline void smmla_rounds(long n) {
  Neon x = {}, y = {}, sum[kChains] = {};
  for (long i = 0; i < n; i++)
    POCKET_FOR (c, kChains) asm volatile("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum[c]) : "w"(x), "w"(y));
}

#endif

/// The int8 multiply instruction of a kernel set.
struct Int8Rate {
  const char* kernel;
  void (*rounds)(long n);
  double per_round;  // multiply-adds
};
inline const Int8Rate kInt8Rates[] = {
#if defined(__x86_64__)
    {"amx", tile_rounds, 4 * 16 * 16 * 64},
    {"avx512vnni", dpbusd512_rounds, kChains * 64},
    {"avxvnni", dpbusd256_rounds, kChains * 32},
    {"avx2", maddubs_rounds, kChains * 32},
#elif defined(__aarch64__)
    {"neon-i8mm", smmla_rounds, kChains * 32},
    {"neon-dotprod", sdot_rounds, kChains * 16},
#endif
    {"", nullptr, 0},
};

/// Finds the instruction of a kernel set that this CPU supports. Null if it has none: scalar.
inline const Int8Rate* find_int8_rate(const std::string& kernel) {
  for (const Int8Rate& r : kInt8Rates)
    if (kernel == r.kernel) return &r;
  return nullptr;
}

/// The total rate of `threads` threads in TOP/s (10^12 operations per second; a multiply-add is two). Best of `tries`.
inline double int8_top_s(const Int8Rate& rate, int threads, int tries) {
  long n = 1 << 14;
  while (time_threads(1, [&](int) { rate.rounds(n); }) < 0.005) n *= 2;
  const double best = best_seconds(tries, threads, [&](int) { rate.rounds(n); });
  return 2 * rate.per_round * double(n) * threads / best / 1e12;
}

/// The model name of the CPU as reported by the system; "" if unknown.
inline std::string cpu_name() {
  std::string name;
  if (std::FILE* file = std::fopen("/proc/cpuinfo", "r")) {
    char line[256], value[256];
    while (name.empty() && std::fgets(line, sizeof line, file))
      if (std::sscanf(line, "model name : %255[^\n]", value) == 1) name = value;
    std::fclose(file);
  }
  return name;
}

}  // namespace pocket::bench

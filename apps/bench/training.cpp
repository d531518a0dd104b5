// training.cpp: measures the speed of training: its float matrix product, compared with the rate of the machine's fused
// multiply-adds, and whole steps.
//
//     make bench-training && apps/bench/training

#include "../../export/program.hpp"
#include "../../models/llama_train.hpp"
#include "../../models/megabyte/megabyte_train.hpp"
#include "../../models/optimizer.hpp"

namespace {

using namespace pocket;

/// Seconds of one call of f: the best of five measurements of about 0.2 seconds each.
template <class F> double best_time(const F& f) {
  const double first = seconds();
  f();
  const double once = seconds() - first;
  double best = 1e9;
  const int times = std::max(1, int(0.2 / once));
  for (int i = 0; i < 5; i++) {
    const double start = seconds();
    for (int j = 0; j < times; j++) f();
    best = std::min(best, (seconds() - start) / times);
  }
  return best;
}

constexpr int kChains = 12;  // independent sums, enough to hide the latency of an fma
constexpr int kChainLength = 1 << 20;

// Fused multiply-adds with all operands in registers.
#if defined(__x86_64__)
POCKET_AVX512 void fma_avx512(float* out, int length) {
  __m512 sum[kChains], x = _mm512_loadu_ps(out), factor = _mm512_set1_ps(out[16]);
  POCKET_FOR (i, kChains) sum[i] = _mm512_loadu_ps(out + i * 16);
  for (int k = 0; k < length; k++)
    POCKET_FOR (i, kChains) sum[i] = _mm512_fmadd_ps(factor, x, sum[i]);
  POCKET_FOR (i, kChains) _mm512_storeu_ps(out + i * 16, sum[i]);
}

POCKET_AVX2 void fma_avx2(float* out, int length) {
  __m256 sum[kChains], x = _mm256_loadu_ps(out), factor = _mm256_set1_ps(out[8]);
  POCKET_FOR (i, kChains) sum[i] = _mm256_loadu_ps(out + i * 8);
  for (int k = 0; k < length; k++)
    POCKET_FOR (i, kChains) sum[i] = _mm256_fmadd_ps(factor, x, sum[i]);
  POCKET_FOR (i, kChains) _mm256_storeu_ps(out + i * 8, sum[i]);
}
#elif defined(__aarch64__)
void fma_neon(float* out, int length) {
  float32x4_t sum[kChains], x = vld1q_f32(out);
  const float factor = out[4];
  POCKET_FOR (i, kChains) sum[i] = vld1q_f32(out + i * 4);
  for (int k = 0; k < length; k++)
    POCKET_FOR (i, kChains) sum[i] = vfmaq_n_f32(sum[i], x, factor);
  POCKET_FOR (i, kChains) vst1q_f32(out + i * 4, sum[i]);
}
#endif

/// The fused multiply-add of a training kernel set.
struct Set {
  const char* name;
  void (*fma)(float* out, int length);
  int width;  // floats per register
};

const Set kSets[] = {
#if defined(__x86_64__)
    {"avx512", fma_avx512, 16},
    {"avx2", fma_avx2, 8},
#elif defined(__aarch64__)
    {"portable", fma_neon, 4},
#endif
};

/// GFLOP/s of a matrix (m, depth), its rows divided among the threads, times a packed matrix (depth, n).
double product_speed(Pool& pool, const TrainKernels& k, int m, int n, int depth) {
  Floats a(size_t(m) * row_stride(depth)), b(packed_size(depth, n)), c(size_t(m) * row_stride(n));
  uint64_t state = 1;
  for (Floats* f : {&a, &b})
    for (size_t i = 0; i < f->size(); i++) (*f)[i] = float(next_random(state) >> 40) / 16777216.f - 0.5f;
  const int rows = (m + pool.threads() - 1) / pool.threads();
  const double time = best_time([&] {
    pool.parallel_for(pool.threads(), [&](int task, int) {
      const int first = task * rows, count = std::min(rows, m - first);
      k.gemm({count, n, depth, rows_of(a.data() + size_t(first) * row_stride(depth), row_stride(depth)),
              packed(b.data(), depth), c.data() + size_t(first) * row_stride(n), row_stride(n), false});
    });
  });
  return 2.0 * m * n * depth / time / 1e9;
}

/// The windows of a training step: random ids, and a second text that starts in the middle of each window.
struct StepData {
  int tokens;       // per window
  int ids;          // vocabulary size
  int second_text;  // its first token
  int start_id;     // id of that token

  std::vector<Window> batch() const {
    std::vector<Window> windows(16);
    uint64_t state = 1;
    for (Window& w : windows)
      for (int t = 0; t < tokens; t++) {
        w.ids.push_back(t == second_text ? start_id : int(next_random(state) % uint64_t(ids)));
        w.targets.push_back(int(next_random(state) % uint64_t(ids)));
        w.first.push_back(t < second_text ? 0 : second_text);
      }
    return windows;
  }
};

/// Tokens or bytes per second of whole training steps: forward, backward and update.
template <class Weights> double step_speed(Weights& model, const StepData& data, int threads, const TrainKernels& k) {
  initialize(model, 1);
  Trainer trainer(model, threads, data.tokens, k);
  const std::vector<Window> batch = data.batch();
  int64_t step = 0;
  const double time = best_time([&] {
    trainer.learn(batch);
    trainer.update(AdamOptions(), 1e-4, ++step);
  });
  return double(batch.size()) * data.tokens / time;
}

/// GFLOP/s of fused multiply-adds on all threads of the pool.
double fma_speed(const Set& set, Pool& pool) {
  const int threads = pool.threads();
  std::vector<Floats> out;
  for (int i = 0; i < threads; i++) out.emplace_back(size_t(kChains * 16));
  const double time = best_time(
      [&] { pool.parallel_for(threads, [&](int task, int) { set.fma(out[size_t(task)].data(), kChainLength); }); });
  return 2.0 * set.width * kChains * kChainLength * threads / time / 1e9;
}

/// Prints the speeds of a kernel set.
void measure(const Set& set, int threads) {
  const TrainKernels& k = *find_train_kernels(set.name);
  Pool pool(threads);
  const double peak = fma_speed(set, pool);
  std::printf("%s, %d thread%s: %.0f GFLOP/s of fused multiply-adds in registers\n", set.name, threads,
              threads > 1 ? "s" : "", peak);
  const int shapes[][3] = {{1024, 256, 768}, {1024, 768, 256}, {256, 704, 128}, {256, 1024, 128}};
  for (const auto& [m, n, depth] : shapes) {
    const double speed = product_speed(pool, k, m, n, depth);
    std::printf("  product %4d x %4d x %3d   %6.1f GFLOP/s   %3.0f%%\n", m, n, depth, speed, 100 * speed / peak);
  }
  Config c;
  c.dim = 128;
  c.hidden_dim = 352;
  c.n_layers = 6;
  c.n_heads = 8;
  c.n_kv_heads = 4;
  c.head_dim = 16;
  c.vocab_size = 1024;
  c.max_seq_len = 256;
  c.tied = true;
  TrainModel llama(c);
  std::printf("  whole step, %.2f M parameters, 16 windows of 256: %.0f tokens/s\n", double(count_parameters(c)) / 1e6,
              step_speed(llama, {c.max_seq_len, c.vocab_size, 100, 1}, threads, k));
  MegabyteConfig m;
  m.global = {128, 512, 3};
  m.local = {96, 384, 3};
  m.n_heads = 8;
  m.head_dim = 16;
  m.patches = 256;
  m.patch_size = 4;
  m.rotary = true;
  MegabyteWeights megabyte(m);
  std::printf("  MEGABYTE, %.2f M parameters, 16 windows of 1024: %.0f bytes/s\n",
              double(count_parameters(megabyte.parameters)) / 1e6,
              step_speed(megabyte, {m.max_seq_len(), kByteValues, 400, kStartId}, threads, k));
}

}  // namespace

int main() {
  return guarded("training", [] {
    const int cores = std::max(1, int(std::thread::hardware_concurrency()));
    for (const Set& set : kSets)
      if (find_train_kernels(set.name))
        for (int threads = 1; threads <= cores; threads *= 2) measure(set, threads);
  });
}

// explain_test.cpp: --explain: the numbers of the page against the reference Llama and against sums by definition, the
// page against hostile texts, and interventions.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "../../apps/explain/edits.hpp"
#include "../../apps/explain/explain.hpp"
#include "../../export/open_checkpoint.hpp"
#include "../support/run_program.hpp"
#include "../support/test_data.hpp"
#include "../support/tiny_model.hpp"

namespace explain_test {

using namespace pocket;
using namespace pocket::explain;
using Json = nlohmann::json;
using Floats = std::vector<float>;

std::vector<uint8_t> bytes_of(const std::string& base64) {
  std::vector<uint8_t> out;
  uint32_t bits = 0;
  int n = 0;
  for (const char c : base64) {
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char* at = std::strchr(digits, c);
    if (c == '=' || !at) break;
    bits = bits << 6 | uint32_t(at - digits);
    if ((n += 6) < 8) continue;
    n -= 8;
    out.push_back(uint8_t(bits >> n));
  }
  return out;
}
template <class T> std::vector<T> numbers_of(const Json& base64) {
  const std::vector<uint8_t> bytes = bytes_of(base64);
  std::vector<T> out(bytes.size() / sizeof(T));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
  return out;
}

// The bytes of what Deflate packed, by RFC 1951: blocks with codes of their own, and without references.
std::vector<uint8_t> unpacked(const std::vector<uint8_t>& packed) {
  std::vector<uint8_t> out;
  size_t at = 0;
  const auto bits = [&](int n) {
    uint32_t value = 0;
    for (int i = 0; i < n; i++, at++) value |= uint32_t(packed.at(at / 8) >> at % 8 & 1) << i;
    return value;
  };
  // The symbol whose canonical code comes next.
  const auto decode = [&](const std::vector<int>& lengths) {
    uint32_t code = 0, first = 0;
    for (int n = 1; n <= 15; n++) {
      code = code << 1 | bits(1);
      uint32_t index = 0;
      for (size_t s = 0; s < lengths.size(); s++)
        if (lengths[s] == n && first + index++ == code) return s;
      first = (first + index) << 1;
    }
    throw std::runtime_error("no such code");
  };
  for (bool last = false; !last;) {
    last = bits(1);
    EXPECT_EQ(bits(2), 2u);
    const size_t symbols = 257 + bits(5), distances = 1 + bits(5);
    const int written = int(4 + bits(4));
    constexpr int kOrder[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    std::vector<int> meta(19), lengths;
    for (int i = 0; i < written; i++) meta[size_t(kOrder[i])] = int(bits(3));
    while (lengths.size() < symbols + distances) lengths.push_back(int(decode(meta)));
    lengths.resize(symbols);
    for (size_t s; (s = decode(lengths)) != 256;) out.push_back(uint8_t(s));
  }
  EXPECT_EQ(packed.size(), (at + 7) / 8);
  return out;
}
std::vector<uint8_t> map_of(const Json& data, size_t layer) { return unpacked(bytes_of(data["attention"][layer])); }

TEST(ExplainDeflate, UnpacksToTheSameBytes) {
  tiny::Random random(7);
  const auto same = [](const std::vector<uint8_t>& bytes) {
    const std::string packed = Deflate::pack(bytes);
    EXPECT_EQ(unpacked({packed.begin(), packed.end()}), bytes) << bytes.size();
    return packed.size();
  };
  for (const size_t n : {0, 1, 2, 3, 1000, 32767, 32768, 32769, 70000}) {
    std::vector<uint8_t> few(n), all(n);
    for (size_t i = 0; i < n; i++) {
      few[i] = random.uniform(0, 1) < 0.8 ? 0 : uint8_t(random.uniform(0, 20));
      all[i] = uint8_t(random.uniform(0, 256));
    }
    same(std::vector<uint8_t>(n, 9));
    EXPECT_LT(same(few), n / 4 + 500);
    EXPECT_LT(same(all), n + n / 100 + 500);
  }
  std::vector<uint8_t> fibonacci;  // whose codes would be longer than 15 bits
  for (uint32_t symbol = 0, a = 1, b = 1; symbol < 21; symbol++, b += std::exchange(a, b))
    fibonacci.insert(fibonacci.end(), a, uint8_t(symbol));
  same(fibonacci);
}

// ---- Measures ----

TEST(ExplainMeasures, BytesKeepSmallNumbers) {
  for (float p = 0; p <= 1; p += 1.f / 4096) {
    EXPECT_NEAR(std::sqrt(from_byte(to_byte(p))), std::sqrt(p), 0.00197f) << p;
    EXPECT_NEAR(from_byte(to_byte(p)), p, 0.004f) << p;
  }
  EXPECT_EQ(to_byte(0), 0);
  EXPECT_EQ(to_byte(1), 255);
  for (float p = 0; p <= 1; p += 1.f / 4096) EXPECT_NEAR(from_byte(to_rough_byte(p)), p, 0.0045f) << p;
  EXPECT_EQ(to_rough_byte(0.00009f), 0);
  EXPECT_GT(to_rough_byte(0.0001f), 0);
  EXPECT_EQ(to_rough_byte(1), 255);
}

TEST(ExplainMeasures, KindsOfHeadsThatDoOneThing) {
  const std::vector<int> ids = {9, 1, 2, 3, 1, 2, 4};  // 1 and 2 occur twice
  const auto score = [&](int kind, const std::function<bool(size_t, size_t)>& looks_at) {
    const HeadKind k = Kinds(ids).of([&](size_t i, size_t j) { return looks_at(i, j) ? 1.f : 0.f; });
    return k.score[size_t(kind)];
  };
  EXPECT_EQ(score(HeadKind::previous, [](size_t i, size_t j) { return j + 1 == i; }), 1);
  EXPECT_EQ(score(HeadKind::first, [](size_t, size_t j) { return j == 0; }), 1);
  EXPECT_EQ(score(HeadKind::itself, [](size_t i, size_t j) { return i == j; }), 1);
  EXPECT_EQ(score(HeadKind::same, [](size_t i, size_t j) { return j + 3 == i; }), 1) << "tokens 4 and 5";
  EXPECT_EQ(score(HeadKind::induction, [](size_t i, size_t j) { return j + 2 == i; }), 1) << "2 and 3, after 1 and 2";
  EXPECT_EQ(score(HeadKind::induction, [](size_t i, size_t j) { return i == 4 && j == 2; }), 0.5f);
  const HeadKind none = Kinds({5, 6, 7}).of([](size_t, size_t) { return 0.5f; });
  EXPECT_TRUE(std::isnan(none.score[HeadKind::same]));
  EXPECT_TRUE(std::isnan(none.score[HeadKind::induction]));
  EXPECT_EQ(none.score[HeadKind::previous], 0.5f);
}

TEST(ExplainMeasures, RolloutIsTheProductOfTheLayers) {
  const size_t n = 37;
  const int layers = 4;
  tiny::Random random(3);
  std::vector<std::vector<Floats>> mean(layers, std::vector<Floats>(n));
  for (auto& layer : mean)
    for (size_t i = 0; i < n; i++) {
      float sum = 0;
      for (size_t j = 0; j <= i; j++) sum += layer[i].emplace_back(float(random.uniform(0, 1)));
      for (float& w : layer[i]) w /= sum;
    }
  std::vector<std::vector<double>> expected(n, std::vector<double>(n));
  for (size_t i = 0; i < n; i++) expected[i][i] = 1;
  for (const auto& layer : mean) {
    std::vector<std::vector<double>> next(n, std::vector<double>(n));
    for (size_t i = 0; i < n; i++)
      for (size_t k = 0; k <= i; k++)
        for (size_t j = 0; j < n; j++) next[i][j] += (layer[i][k] + (i == k ? 1 : 0)) / 2 * expected[k][j];
    expected = next;
  }
  std::vector<Floats> triangles;
  for (const auto& layer : mean) {
    Floats& all = triangles.emplace_back();
    for (const Floats& row : layer) all.insert(all.end(), row.begin(), row.end());
  }
  const auto each = [](size_t count, const auto& f) {
    for (size_t i = 0; i < count; i++) f(i);
  };
  const Floats found = rollout(
      layers, n, [&](int l) { return triangles[size_t(l)].data(); }, each);
  for (size_t i = 0; i < n; i++) {
    double sum = 0;
    for (size_t j = 0; j <= i; j++) {
      EXPECT_NEAR(found[triangle(i) + j], expected[i][j], 1e-6);
      sum += found[triangle(i) + j];
    }
    EXPECT_NEAR(sum, 1, 1e-6);
  }
}

TEST(ExplainMeasures, SummaryEqualsTheDefinition) {
  tiny::Random random(4);
  for (const int n : {1, 3, 5, 8, 21, 1000}) {
    const tiny::Floats logits = tiny::normal_floats(random, size_t(n), 4);
    std::vector<float> work;
    const auto exp = [](float* x, int size) { exp_in_place(x, size); };
    const Summary s = summarize(logits.data(), n, n / 2, exp, work);
    double sum = 0, entropy = 0;
    for (const float x : logits) sum += std::exp(double(x));
    for (const float x : logits) entropy -= std::exp(double(x)) / sum * std::log2(std::exp(double(x)) / sum);
    EXPECT_NEAR(s.entropy, entropy, 1e-4);
    EXPECT_NEAR(s.p_next, std::exp(double(logits[size_t(n / 2)])) / sum, 1e-5);
    std::vector<int> order(static_cast<size_t>(n));
    for (int i = 0; i < n; i++) order[size_t(i)] = i;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[size_t(a)] > logits[size_t(b)]; });
    for (int k = 0; k < Summary::kTop; k++) {
      EXPECT_EQ(s.ids[size_t(k)], k < n ? order[size_t(k)] : -1);
      if (k >= n) continue;
      EXPECT_NEAR(s.p[size_t(k)], std::exp(double(logits[size_t(order[size_t(k)])])) / sum, 1e-5);
    }
  }
  // In parts of any size.
  for (const int part : {1, 7, 100}) {
    const tiny::Floats logits = tiny::normal_floats(random, 250, 3);
    const auto exp = [](float* x, int size) { exp_in_place(x, size); };
    std::vector<float> work;
    Summarizer sum(17);
    for (int first = 0; first < 250; first += part)
      sum.add(&logits[size_t(first)], first, std::min(part, 250 - first), exp, work);
    const Summary found = sum.summary(), whole = summarize(logits.data(), 250, 17, exp, work);
    EXPECT_EQ(found.ids, whole.ids);
    EXPECT_NEAR(found.entropy, whole.entropy, 1e-5);
    EXPECT_NEAR(found.p_next, whole.p_next, 1e-6);
    for (size_t k = 0; k < Summary::kTop; k++) EXPECT_NEAR(found.p[k], whole.p[k], 1e-6);
  }
  const float equal[] = {1, 2, 2, NAN, 2};
  EXPECT_EQ(largest(equal, 5, 4), (std::vector<int>{1, 2, 4, 0}));
  EXPECT_EQ(largest(equal, 5, 9), (std::vector<int>{1, 2, 4, 0, 3}));
  const float without[] = {NAN, NAN, NAN, 1};
  EXPECT_EQ(largest(without, 4, 2), (std::vector<int>{3, 0}));
}

// ---- Choices ----

class OpenSampler : public Sampler {
 public:
  using Sampler::Sampler;
  Choice choose_and_explain(const float* logits, int n) {
    const int id = (*this)(logits, n);
    return explain_choice(id, logits, n, options_, work_, candidates_);
  }
};

// The probabilities that a sampler draws from, by the definitions, in double.
std::vector<double> by_definition(const tiny::Floats& logits, const SamplerOptions& o) {
  const size_t n = logits.size();
  const double top = *std::max_element(logits.begin(), logits.end());
  std::vector<std::pair<double, size_t>> sorted;
  for (size_t i = 0; i < n; i++) sorted.push_back({std::exp((double(logits[i]) - top) / double(o.temperature)), i});
  std::sort(sorted.begin(), sorted.end(), [](auto a, auto b) { return a.first > b.first; });
  size_t kept = 0;
  while (kept < n && sorted[kept].first >= double(o.min_p)) kept++;
  if (o.top_k > 0) kept = std::min(kept, size_t(o.top_k));
  double total = 0, sum = 0;
  for (size_t i = 0; i < kept; i++) total += sorted[i].first;
  size_t end = 0;
  while (end < kept && (end == 0 || sum <= double(o.top_p) * total || o.top_p >= 1)) sum += sorted[end++].first;
  std::vector<double> p(n);
  for (size_t i = 0; i < end; i++) p[sorted[i].second] = sorted[i].first / sum;
  return p;
}

TEST(ExplainChoice, ProbabilitiesAreThoseOfTheSampler) {
  tiny::Random random(5);
  const tiny::Floats logits = tiny::normal_floats(random, 50, 2);
  for (SamplerOptions o :
       {SamplerOptions{1, 1, 0, 0, 0, 1}, SamplerOptions{0.8f, 0.9f, 0, 0, 0, 1}, SamplerOptions{1.5f, 1, 0, 7, 0, 1},
        SamplerOptions{0.7f, 1, 0, 0, 0.1f, 1}, SamplerOptions{1.2f, 0.8f, 0, 20, 0.05f, 1}}) {
    const std::vector<double> expected = by_definition(logits, o);
    size_t kept = 0;
    for (const double p : expected) kept += p > 0;
    for (uint64_t seed = 0; seed < 50; seed++) {
      o.seed = seed;
      OpenSampler sampler(o);
      const Choice c = sampler.choose_and_explain(logits.data(), int(logits.size()));
      EXPECT_EQ(c.id, Sampler(o)(logits.data(), int(logits.size())));
      EXPECT_EQ(c.kept, kept);
      for (const Alternative& a : c.list) {
        EXPECT_NEAR(a.final, expected[size_t(a.id)], 1e-5);
        EXPECT_EQ(a.cut == Cut::kept, expected[size_t(a.id)] > 0);
        EXPECT_FALSE(a.id == c.id && a.cut != Cut::kept);
      }
    }
  }
}

TEST(ExplainChoice, NamesWhatCutATokenAway) {
  const tiny::Floats logits = {5, 4, 3, 2, 1, -5};
  const auto cuts = [&](const SamplerOptions& o) {
    std::string names;
    for (const Alternative& a : OpenSampler(o).choose_and_explain(logits.data(), 6).list)
      names += std::string(a.cut == Cut::kept ? "kept" : name_of(a.cut)) + " ";
    return names;
  };
  EXPECT_EQ(cuts({1, 1, 1, 0, 0, 1}), "kept kept kept kept kept kept ");
  EXPECT_EQ(cuts({1, 1, 1, 0, 0.1f, 1}), "kept kept kept min-p min-p min-p ");
  EXPECT_EQ(cuts({1, 1, 1, 2, 0.02f, 1}), "kept kept top-k top-k min-p min-p ");
  EXPECT_EQ(cuts({1, 0.6f, 1, 4, 0, 1}), "kept top-p top-p top-p top-k top-k ");
  EXPECT_EQ(cuts({0, 1, 1, 0, 0, 1}), "kept temperature 0 temperature 0 temperature 0 temperature 0 temperature 0 ");
}

// ---- What a session does ----

class ExplainSession : public testing::TestWithParam<Type> {
 protected:
  static constexpr int kTokens = 150;  // more than a chunk, and than a block of keys
  ExplainSession() : m(tiny::small_config(), GetParam()), ids(tiny::random_ids(kTokens, 100)) {}
  tiny::MemoryModel m;
  std::vector<int> ids;
};

TEST_P(ExplainSession, CollectorKeepsWhatIsObserved) {
  Session session(m.model, {512, 2, KvType::automatic, nullptr});
  Collector seen(m.model);
  std::vector<Floats> last(kTokens);
  session.observe([&](const Observation& o) {
    seen.observe(o);
    if (o.kind == Observation::attention) {
      EXPECT_NEAR(std::accumulate(o.data, o.data + o.size, 0.0), 1, 1e-5);
    }
    if (o.kind == Observation::layer_output && o.layer == 1) last[size_t(o.position)].assign(o.data, o.data + o.size);
  });
  ASSERT_TRUE(session.forward(ids.data(), 100));
  session.rewind(90);  // as after a wrong guess
  for (int i = 90; i < kTokens; i++) ASSERT_TRUE(session.forward(&ids[size_t(i)], 1));
  seen.end();
  ASSERT_EQ(seen.observed(), size_t(kTokens));
  const bool f32 = GetParam() == Type::f32;
  const auto expected = tiny::reference_for(m.model, ids, f32 ? KvType::f32 : KvType::q8,
                                            f32 ? tiny::MatmulInputs::exact : tiny::MatmulInputs::int8);
  const double bound = f32 ? 1e-4 : 0.03;
  for (int l = 0; l < 2; l++)
    for (size_t i = 0; i < size_t(kTokens); i++)
      for (size_t j = 0; j <= i; j++) {
        for (int h = 0; h < 4; h++)
          EXPECT_NEAR(seen.weight(l, h, i, j), expected.attention[size_t(l)][size_t(h)][i][j], bound);
      }
  for (size_t i = 0; i < size_t(kTokens); i++) EXPECT_TRUE(tiny::same_bits(seen.output(1, i), last[i].data(), 64));
  EXPECT_EQ(seen.several().passes + seen.single().passes, 1u + 60) << "a prompt of one chunk";
  EXPECT_EQ(seen.single().tokens, 60u);
}

TEST_P(ExplainSession, LastLayerOfTheLensIsTheLogits) {
  Session session(m.model, {512, 2, KvType::automatic, nullptr});
  Collector seen(m.model);
  session.observe([&](const Observation& o) { seen.observe(o); });
  std::vector<tiny::Floats> logits;
  ASSERT_TRUE(session.forward(ids.data(), size_t(kTokens), [&](size_t, const float* row) {
    logits.emplace_back(row, row + 100);
    return true;
  }));
  Parts parts(m.model, session.kernel(), 3);
  std::atomic<int> rows{0};
  parts.logits(
      size_t(kTokens), [&](size_t i) { return seen.output(1, i); },
      [&](size_t i, int first, const float* row, int n) {
        EXPECT_TRUE(tiny::same_bits(row, &logits[i][size_t(first)], size_t(n))) << i;
        rows++;
      });
  EXPECT_EQ(rows, kTokens);
}

// Of a model whose output matrix is larger than its layers, the lens shows all of the last positions, but not of all.
TEST(ExplainLens, ShowsWhatTheTimeAllows) {
  const auto cells = [](const LensPlan& plan, size_t n) {
    size_t shown = 0;
    for (int l = 0; l <= plan.layers; l++)
      for (size_t i = 0; i < n; i++) shown += plan.shows(l, i);
    return shown;
  };
  const tiny::MemoryModel small(tiny::small_config(), Type::q8);
  EXPECT_EQ(cells(lens_plan(small.model, 500, 0), 500), 3u * 500);
  EXPECT_EQ(cells(lens_plan(small.model, 0, 0), 0), 0u);
  Config config = tiny::small_config();
  config.n_layers = 12;
  for (const int vocab : {2000, 4000, 20000}) {
    config.vocab_size = vocab;
    const tiny::MemoryModel large(config, Type::q8);
    const LensPlan plan = lens_plan(large.model, 100, 0);
    EXPECT_LT(plan.all_from, 100u);
    EXPECT_GT(plan.all_from, 50u);
    for (size_t i = 0; i < 100; i++) EXPECT_TRUE(plan.shows(0, i) && plan.shows(12, i));
    for (int l = 0; l <= 12; l++) EXPECT_TRUE(plan.shows(l, 99));
    double layer_bytes = 0;
    for (const Layer& l : large.model.layers)
      for (const Tensor* t : {&l.wq, &l.wk, &l.wv, &l.wo, &l.w1, &l.w3, &l.w2}) layer_bytes += double(t->bytes);
    const double most = 1.25 * 100 * layer_bytes / double(large.model.output.bytes);
    EXPECT_LE(double(cells(plan, 100)), std::max(most, 2 * 100 + 11.0)) << vocab;
    EXPECT_GE(cells(lens_plan(large.model, 100, 5), 100), cells(plan, 100));
  }
}

TEST_P(ExplainSession, JourneyEndsWhereTheModelDoes) {
  Session session(m.model, {512, 1, KvType::automatic, nullptr});
  Collector seen(m.model);
  std::map<int, Floats> outputs;  // of the heads of layer 0, by position
  session.observe([&](const Observation& o) {
    seen.observe(o);
    if (o.kind == Observation::head_outputs && o.layer == 0) outputs[o.position].assign(o.data, o.data + o.size);
  });
  const float* logits = session.forward(ids.data(), size_t(kTokens));
  ASSERT_TRUE(logits);
  const Floats last(logits, logits + 100);
  Parts parts(m.model, session.kernel(), 1);
  const double bound = 2e-3;  // of numbers around 1: it rounds its own sums and rotations, and the session its inputs
  const auto near = [&](const Floats& a, const float* b, const char* name, double factor = 1) {
    for (size_t i = 0; i < a.size(); i++) ASSERT_NEAR(a[i], b[i], factor * bound * (1 + std::fabs(b[i]))) << name << i;
  };
  for (int head = 0; head < 4; head++) {
    const int position = kTokens - 1;
    const Journey j = follow(session, seen, parts, ids.back(), position, head);
    for (int t = 0; t <= position; t++)
      ASSERT_NEAR(j.weights[size_t(t)], seen.weight(0, head, size_t(position), size_t(t)), 2e-3);
    near(j.output, &outputs[position][size_t(head) * 16], "output ");
    const Floats all = outputs[position];
    near(j.attention_update, parts.multiply(m.model.layers[0].wo, all, Tensor()).data(), "attention ");
    near(j.mlp_update, parts.multiply(m.model.layers[0].w2, j.hidden, Tensor()).data(), "mlp ");
    EXPECT_TRUE(tiny::same_bits(j.logits.data(), last.data(), 100));
    double squares = 0;
    for (const float x : j.xn) squares += double(x) * x;
    EXPECT_GT(squares, 10);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, ExplainSession, testing::Values(Type::f32, Type::q8, Type::q4),
                         [](const auto& info) { return std::string(type_name(info.param)); });

// ---- Interventions ----

TEST(ExplainEdits, EqualThoseOfTheReference) {
  const tiny::MemoryModel m(tiny::small_config(), Type::f32);
  const std::vector<int> ids = tiny::random_ids(20, 100);
  tiny::Random random(6);
  const tiny::Floats vector = tiny::normal_floats(random, 64);
  const Floats x(vector.begin(), vector.end());
  const auto last_logits = [&](const Edits& edits) {
    Session session(m.model, {64, 1, KvType::f32, nullptr});
    session.observe(edits);
    const float* found = session.forward(ids.data(), ids.size());
    const Floats logits(found, found + 100);
    ReferenceLlama llama(m.model);
    llama.observer = edits;
    const float* expected = nullptr;
    for (size_t i = 0; i < ids.size(); i++) expected = llama.forward(ids[i], int(i));
    for (int i = 0; i < 100; i++) EXPECT_NEAR(logits[size_t(i)], expected[i], 1e-4 * (1 + std::fabs(expected[i])));
    return logits;
  };
  const Floats plain = last_logits(Edits(m.model));
  Edits edits(m.model);
  edits.scale_head(0, 2, 0);
  EXPECT_NE(last_logits(edits), plain);
  edits.clear();
  edits.patch(0, 7, x);
  EXPECT_NE(last_logits(edits), plain);
  edits.clear();
  // All positions have one residual stream after the last layer, and so the same logits.
  edits.patch(m.model.config.n_layers - 1, Edits::kAll, x);
  const Floats patched = last_logits(edits);
  edits.patch(0, Edits::kAll, x);
  EXPECT_EQ(last_logits(edits), patched);
  edits.clear();
  edits.steer(Edits::kAll, x, 0.5f, 10);
  const Floats steered = last_logits(edits);
  EXPECT_NE(steered, plain);
  edits.steer(Edits::kAll, x, -0.5f, 10);
  for (int i = 0; i < 100; i++) EXPECT_NEAR(last_logits(edits)[size_t(i)], plain[size_t(i)], 1e-3);
}

// A head without weights in wo changes nothing when it is removed; one layer's heads are all that attention adds.
TEST(ExplainEdits, WithoutHeadsAttentionAddsNothing) {
  const tiny::MemoryModel m(tiny::small_config(), Type::f32);
  const std::vector<int> ids = tiny::random_ids(10, 100);
  Session session(m.model, {64, 1, KvType::f32, nullptr});
  Edits edits(m.model);
  edits.scale_head(1, Edits::kAll, 0);
  Floats before;
  int compared = 0;
  session.observe([&](const Observation& o) {
    edits(o);
    if (o.kind == Observation::layer_output && o.layer == 0) before.insert(before.end(), o.data, o.data + o.size);
    if (o.kind != Observation::attention_residual || o.layer != 1) return;
    EXPECT_TRUE(tiny::same_bits(o.data, &before[size_t(o.position) * 64], 64));
    compared++;
  });
  ASSERT_TRUE(session.forward(ids.data(), ids.size()));
  EXPECT_EQ(compared, 10);
}

// ---- Models of transformers ----

// Relatives of Llama with biases, norms of q and k, layers without rope: attention, the journey and interventions agree with
// the plain Llama, whose logits are those of transformers (huggingface_test.cpp).
class ExplainCheckpoint : public testing::TestWithParam<const char*> {};

TEST_P(ExplainCheckpoint, AttentionAndEditsMatchTheReference) {
  NEED_DATA(path, GetParam());
  Checkpoint checkpoint;
  std::string error;
  ASSERT_TRUE(open_checkpoint(path, "", checkpoint, error)) << error;
  const tiny::MemoryModel m(
      tiny::model_bytes(tiny::parts_of(checkpoint.config, Type::f32),
                        [&](const TensorSpec& spec, int64_t first, int64_t count, float* out, std::string& why) {
                          return checkpoint.read_rows(spec.name, first, count, out, why);
                        }));
  const Config& c = m.model.config;
  std::vector<int> ids = Json::parse(read_file(std::string(path) + "/golden.json"))["ids"];
  ids.resize(std::min<size_t>(ids.size(), 16));
  const auto expected = tiny::reference_for(m.model, ids);
  Session session(m.model, {64, 1, KvType::f32, nullptr});
  Collector seen(m.model);
  session.observe([&](const Observation& o) { seen.observe(o); });
  const float* logits = session.forward(ids.data(), ids.size());
  ASSERT_TRUE(logits) << session.error;
  const Floats plain(logits, logits + c.vocab_size);
  for (int l = 0; l < c.n_layers; l++)
    for (int h = 0; h < c.n_heads; h++)
      for (size_t i = 0; i < ids.size(); i++)
        for (size_t j = 0; j <= i; j++)
          ASSERT_NEAR(seen.weight(l, h, i, j), expected.attention[size_t(l)][size_t(h)][i][j], 1e-4);
  Parts parts(m.model, session.kernel(), 1);
  const int last = int(ids.size()) - 1;
  for (int h = 0; h < c.n_heads; h++) {
    const Journey j = follow(session, seen, parts, ids.back(), last, h);
    for (int t = 0; t <= last; t++)
      EXPECT_NEAR(j.weights[size_t(t)], seen.weight(0, h, size_t(last), size_t(t)), 1e-4) << h;
    EXPECT_TRUE(tiny::same_bits(j.logits.data(), plain.data(), plain.size()));
  }
  Edits edits(m.model);
  edits.scale_head(0, c.n_heads - 1, 0);
  edits.patch(0, 3, Floats(size_t(c.dim), 0.5f));
  session.rewind(0);
  session.observe(edits);
  logits = session.forward(ids.data(), ids.size());
  ASSERT_TRUE(logits);
  ReferenceLlama llama(m.model);
  llama.observer = edits;
  const float* reference = nullptr;
  for (size_t i = 0; i < ids.size(); i++) reference = llama.forward(ids[i], int(i));
  double change = 0;
  for (int i = 0; i < c.vocab_size; i++) {
    EXPECT_NEAR(logits[i], reference[i], 1e-4 * (1 + std::fabs(reference[i])));
    change = std::max(change, double(std::fabs(logits[i] - plain[size_t(i)])));
  }
  EXPECT_GT(change, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(Folders, ExplainCheckpoint,
                         testing::Values("hf/gqa-f32", "hf/linear-rope-f16", "hf/llama3-rope-sharded", "hf/pytorch-bin",
                                         "hf/pytorch-bin-sharded-bf16", "hf/tied-bf16", "hf-more/ernie4_5",
                                         "hf-more/granite", "hf-more/llama-attention-bias", "hf-more/llama-bias",
                                         "hf-more/mistral-head-dim", "hf-more/phi3", "hf-more/qwen2", "hf-more/qwen3",
                                         "hf-more/qwen3-untied", "hf-more/smollm3"));

// ---- Sources ----

TEST(ExplainSources, EachFunctionIsOnceInRunCpp) {
  const std::string text = read_all(std::string(POCKET_SOURCE_DIR) + "/run.cpp", 4 << 20);
  for (const Source& s : kSources) {
    const size_t at = text.find(s.head);
    ASSERT_NE(at, text.npos) << s.name;
    EXPECT_EQ(text.find(s.head, at + 1), text.npos) << s.name;
    const Excerpt e = find_function(text, s.head);
    EXPECT_EQ(e.line, 1 + std::count(text.begin(), text.begin() + long(at), '\n')) << s.name;
    EXPECT_NE(e.text.find(trimmed(s.head)), e.text.npos);
    EXPECT_LT(std::count(e.text.begin(), e.text.end(), '\n'), 45) << s.name;
    EXPECT_EQ(e.text.rfind("}"), e.text.size() - (e.text[e.text.size() - 2] == ';' ? 3 : 2)) << e.text;
  }
  EXPECT_EQ(find_function(text, "void there_is_none() {").line, 0);
}

// ---- The page ----

const char* const kHostile = "</script><script>alert(1)</script><!--\"'&\\\x01\x1b[31m\xE2\x80\xAE\xF0\x9F\xA6\x99\xff";

TEST(ExplainPage, TextsCannotEndTheirElement) {
  const std::string data = "{\"a\": " + json(kHostile) + "}";
  const std::string page = page_with(data, "12345");
  const size_t begin = page.find("id=\"data\" nonce=\"12345\">") + 24, end = page.find("</script>", begin);
  ASSERT_GT(begin, 24u);
  const std::string inside = page.substr(begin, end - begin);
  EXPECT_EQ(inside.find_first_of("<>&"), inside.npos);
  EXPECT_EQ(Json::parse(inside), Json::parse(data));
  EXPECT_EQ(page.find("NONCE"), page.npos);
  EXPECT_EQ(page.find("POCKET_DATA"), page.npos);
  EXPECT_EQ(page.rfind("<!doctype html>", 0), 0u);
  EXPECT_EQ(page.find("http://"), page.find("http://www.w3.org"));
  EXPECT_NE(random_nonce(), random_nonce());
}

TEST(ExplainPage, Base64IsThatOfTheStandard) {
  for (const auto& [text, expected] : {std::pair("", ""), std::pair("f", "Zg=="), std::pair("fo", "Zm8="),
                                       std::pair("foo", "Zm9v"), std::pair("foobar", "Zm9vYmFy")})
    EXPECT_EQ(base64(text, std::strlen(text)), expected);
}

class ExplainProgram : public RunProgram {
 protected:
  static Json data_of(std::vector<std::string> args, const TemporaryFolder& t, const ProgramOptions& options = {}) {
    args.insert(args.end(), {"--explain", t.file("data.json"), "-q"});
    const ProgramResult r = run(args, options);
    EXPECT_EQ(r.status, 0) << r.err;
    return Json::parse(read_all(t.file("data.json"), 1 << 30));
  }
};

TEST_F(ExplainProgram, WritesAPageAndTheSameText) {
  const TemporaryFolder t;
  for (const char* type : {"f32", "q8", "q4"}) {
    const std::vector<std::string> args = {model(type), "-i", "Hi", "-n", "20", "-s", "3"};
    std::vector<std::string> explained = args;
    explained.insert(explained.end(), {"--explain", t.file("page.html")});
    EXPECT_EQ(text(explained), text(args));
    const std::string page = read_all(t.file("page.html"), 1 << 30);
    EXPECT_EQ(page.rfind("<!doctype html>", 0), 0u);
    EXPECT_EQ(page.substr(page.size() - 8), "</html>\n");
  }
  EXPECT_EQ(t.list(), "page.html\n");
}

TEST_F(ExplainProgram, DataAreConsistent) {
  const TemporaryFolder t;
  const Json d = data_of({model("f32"), "-i", "abcabc", "-n", "12", "-s", "5", "-k", "20"}, t);
  EXPECT_EQ(d["format"], "pocketllama explain 2");
  const size_t n = d["positions"], layers = d["model"]["layers"], heads = d["model"]["heads"];
  ASSERT_GE(d["tokens"].size(), n);
  const auto lens_ids = numbers_of<int32_t>(d["lens"]["ids"]);
  const auto lens_p = numbers_of<float>(d["lens"]["p"]);
  const size_t top = d["lens"]["top"];
  ASSERT_EQ(d["lens"]["layers"].size(), layers + 1);
  ASSERT_EQ(lens_ids.size(), (layers + 1) * n * top);
  EXPECT_EQ(numbers_of<float>(d["lens"]["entropy"]).size(), (layers + 1) * n);
  ASSERT_EQ(d["attention"].size(), layers);
  size_t choices = 0;
  for (size_t i = 0; i < n; i++) {
    double sum = 0;
    const auto map = map_of(d, 0);
    ASSERT_EQ(map.size(), heads * triangle(n));
    for (size_t j = 0; j <= i; j++) sum += from_byte(map[triangle(i) + j]);
    EXPECT_NEAR(sum, 1, 0.05);
    const Json& c = d["choices"][i];
    if (c.is_null()) continue;
    choices++;
    EXPECT_EQ(c["id"], d["tokens"][i + 1]["id"]);
    EXPECT_TRUE(d["tokens"][i + 1]["new"]);
    EXPECT_LE(c["kept"], 20);
    // The model's probabilities, from its logits and from the last layer of the lens.
    for (size_t k = 0; k < top; k++) {
      EXPECT_EQ(c["list"][k][0], lens_ids[(layers * n + i) * top + k]);
      EXPECT_NEAR(c["list"][k][1], lens_p[(layers * n + i) * top + k], 1e-5);
    }
    double kept = 0;
    for (const Json& a : c["list"]) {
      EXPECT_TRUE(d["pieces"].contains(std::to_string(int(a[0]))));
      EXPECT_EQ(a[3] == 0, a[4] != "");
      kept += double(a[3]);
    }
    EXPECT_LE(kept, 1 + 1e-6);
  }
  EXPECT_EQ(choices, 12u);
  EXPECT_EQ(d["cost"]["single"]["tokens"], 11);
  EXPECT_GT(d["cost"]["single"]["mlp"], 0);
  EXPECT_EQ(d["journey"]["position"], n - 12);
}

TEST_F(ExplainProgram, GuessesAndBatchesDoNotMatter) {
  const TemporaryFolder t;
  const std::vector<std::string> args = {model(), "-i", "abcabcabcabc", "-n", "40", "-t", "0"};
  Json plain = data_of(args, t);
  std::vector<std::string> other = args;
  other.insert(other.end(), {"--lookup", "--batch", "3", "--threads", "3"});
  Json guessed = data_of(other, t);
  for (const char* field : {"tokens", "choices", "attention", "rollout", "lens", "kinds", "residual", "journey"})
    EXPECT_EQ(plain[field], guessed[field]) << field;
}

TEST_F(ExplainProgram, StopsAt512TokensAndSaysSo) {
  const TemporaryFolder t;
  const ProgramResult r =
      run({model(), "-i", std::string(600, 'a'), "-n", "2", "--ctx", "2000", "--explain", t.file("data.json")});
  ASSERT_EQ(r.status, 0) << r.err;
  const Json d = Json::parse(read_all(t.file("data.json"), 1 << 30));
  EXPECT_EQ(d["positions"], 512);
  EXPECT_NE(r.err.find("explains the first 512 of "), r.err.npos) << r.err;
}

TEST_F(ExplainProgram, CtrlCKeepsThePageAndTheSession) {
  const TemporaryFolder t;
  ProgramOptions options;
  options.interrupt_after_ms = 1500;
  const ProgramResult r = run({model(), "-i", "go", "-n", "0", "--ctx", "100000", "-t", "3", "-p", "1", "--save",
                               t.file("s.session"), "--explain", t.file("data.json")},
                              options);
  EXPECT_EQ(r.status, 130) << r.err;
  ASSERT_EQ(t.list(), "data.json\ns.session\n") << r.err;
  const Json d = Json::parse(read_file(t.file("data.json")));
  EXPECT_GT(d["positions"], 1);
  for (const auto& source : d["sources"]) EXPECT_NE(source["text"], "") << source;
}

TEST_F(ExplainProgram, WritesNoPageAboutNothing) {
  const TemporaryFolder t;
  const ProgramResult r = run({model(), "-m", "chat", "--template", "plain", "--explain", t.file("page.html")});
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_NE(r.err.find("page.html: not written, since there is no text to explain"), std::string::npos) << r.err;
  EXPECT_EQ(t.list(), "");
}

TEST_F(ExplainProgram, RejectsWhatItCannotExplain) {
  const TemporaryFolder t;
  expect_failure(1, {model(), "-i", "a", "--explain", t.file("no/page.html")}, {"no/page.html"});
  expect_failure(2, {model(), "--resume", "s", "--explain", t.file("p.html")}, {"--explain", "--resume"});
  expect_failure(2, {model(), "-i", "a", "--kernel", "reference", "--explain", t.file("p.html")}, {"--explain"});
  expect_failure(1, {model(), "-i", "a", "--explain", model()}, {"expected another file"});
  EXPECT_EQ(t.list(), "");
}

TEST_F(ExplainProgram, HostileTextIsShownOnly) {
  const TemporaryFolder t;
  text({model(), "-i", kHostile, "-n", "5", "--explain", t.file("page.html")});
  const std::string page = read_all(t.file("page.html"), 1 << 30);
  EXPECT_EQ(page.find("alert(1)"), page.npos) << "the tokens are single characters";
  size_t elements = 0;
  for (size_t at = 0; (at = page.find("<script", at)) != page.npos; at++) elements++;
  EXPECT_EQ(elements, 2u);
}

TEST_F(ExplainProgram, Chat) {
  const TemporaryFolder t;
  ProgramOptions options;
  options.input = "again\n";
  const Json d =
      data_of({model(), "-m", "chat", "--template", "plain", "-i", "Hello", "-n", "8", "-s", "2"}, t, options);
  size_t chosen = 0;
  for (const Json& c : d["choices"]) chosen += !c.is_null();
  EXPECT_GE(chosen, 2u);
  EXPECT_EQ(d["options"]["mode"], "chat");
}

}  // namespace explain_test

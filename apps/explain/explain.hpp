// explain.hpp: --explain: watches a session while it writes a text, and then writes what happened inside the model: as a
// page that needs nothing but a browser, or as JSON. README.md describes both.
#pragma once

#include <limits>
#include <optional>
#include <random>
#include <set>

#include "../../export/json_writer.hpp"
#include "../../export/memory.hpp"
#include "../../export/output_file.hpp"
#include "deflate.hpp"
#include "journey.hpp"
#include "sources.hpp"

namespace pocket::explain {

/// The page, with places for the data and the nonce. The file is one string literal.
inline constexpr std::string_view kPage =
#include "page.html"
    ;

/// RFC 4648, with padding.
inline std::string base64(const void* data, size_t bytes) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const uint8_t* p = static_cast<const uint8_t*>(data);
  std::string out((bytes + 2) / 3 * 4, '=');
  char* to = &out[0];
  for (size_t i = 0; i < bytes; i += 3, to += 4) {
    const size_t n = std::min<size_t>(3, bytes - i);
    const uint32_t bits = uint32_t(p[i]) << 16 | (n > 1 ? uint32_t(p[i + 1]) << 8 : 0) | (n > 2 ? p[i + 2] : 0u);
    for (size_t k = 0; k <= n; k++) to[k] = kDigits[bits >> (18 - 6 * k) & 63];
  }
  return out;
}
template <class T> std::string base64_json(const std::vector<T>& values) {
  return "\"" + base64(values.data(), values.size() * sizeof(T)) + "\"";
}

/// The page with `data`, a JSON object; with "null" the page around it sends them. No text in the data can end its
/// element: each < and > is escaped. nonce: what the page's policy requires of a script, a number that nobody can guess.
inline std::string page_with(const std::string& data, const std::string& nonce) {
  std::string page(kPage), escaped;
  escaped.reserve(data.size() + data.size() / 64);
  size_t from = 0, next[] = {data.find('<'), data.find('>'), data.find('&')};
  while (true) {
    size_t* const first = std::min_element(next, next + 3);
    if (*first == data.npos) break;
    escaped.append(data, from, *first - from);
    escaped += data[*first] == '<' ? "\\u003c" : data[*first] == '>' ? "\\u003e" : "\\u0026";
    from = *first + 1;
    *first = data.find(data[*first], from);
  }
  escaped.append(data, from, data.npos);
  const std::string place = "NONCE";
  for (size_t at = 0; (at = page.find(place, at)) != page.npos; at += nonce.size())
    page.replace(at, place.size(), nonce);
  const std::string data_place = "POCKET_DATA";
  return page.replace(page.find(data_place), data_place.size(), escaped);
}
inline std::string random_nonce() {
  std::random_device random;
  std::string digits;
  for (int i = 0; i < 4; i++) digits += std::to_string(random());
  return digits;
}

/// The text that is explained, and how it was made.
struct Text {
  std::string model, mode;  // file name; generate or chat
  std::vector<int> ids;     // of the context, the last of which may not have been processed
  SamplerOptions sampler;
  bool constrained = false;                 // by a grammar
  std::function<std::string(int)> text_of;  // of a token in the middle of a text
};

/// What the logit lens shows: every `step`-th layer, from the embedding (0) on, and the last one; of the positions from
/// `all_from` on, all layers.
struct LensPlan {
  int layers, step = 1;
  size_t all_from = 0;
  bool shows(int layer, size_t position) const { return layer % step == 0 || layer == layers || position >= all_from; }
};
/// Of n positions: all layers; or as many as take about as long as the text did, two thirds of this time for all positions,
/// the rest for the last ones. A chosen token counts as 16 of a prompt, for which each weight is read once for many tokens.
inline LensPlan lens_plan(const Model& m, size_t n, size_t chosen) {
  LensPlan plan{m.config.n_layers};
  double layer_bytes = 0;
  for (const Layer& l : m.layers)
    for (const Tensor* t : {&l.wq, &l.wk, &l.wv, &l.wo, &l.w1, &l.w3, &l.w2}) layer_bytes += double(t->bytes);
  const double most = 1.25 * double(n + 15 * chosen) * layer_bytes / double(m.output.bytes);  // logits of a position
  if (most >= double(n) * (plan.layers + 1)) return plan;
  const double steps = std::floor(most * 2 / 3 / double(n)) - 1;
  plan.step = int(std::ceil(plan.layers / std::max(1.0, steps)));
  const int shown = (plan.layers + plan.step - 1) / plan.step + 1;
  const double rest = (most - double(n) * shown) / std::max(1, plan.layers + 1 - shown);
  plan.all_from = n - std::min(n, size_t(std::max(1.0, rest)));
  return plan;
}

class Explanation {
 public:
  using Fields = std::vector<std::pair<std::string_view, std::string>>;
  using Progress = std::function<void(const char* what, size_t done, size_t total)>;

  /// path: of the page, or with the ending .json of the data. False with `error` set if it cannot be written.
  bool open(const std::string& path) {
    json_only_ = path.size() > 5 && path.compare(path.size() - 5, 5, ".json") == 0;
    return file_.open(path);
  }
  std::string error() const { return file_.error(); }

  /// Watches a session, which must outlive this object or end(). timed: whether times are part of the data.
  void watch(Session& session, bool timed = true) {
    session_ = &session;
    timed_ = timed;
    collector_.emplace(session.model());
    session.observe([this](const Observation& o) { collector_->observe(o); });
  }
  bool watching() const { return session_ != nullptr; }
  /// Tokens that were observed so far.
  size_t observed() const { return collector_->observed(); }

  /// To be called around each choice of the sampler. describe(): what was chosen.
  void begin_choice() { collector_->begin_choice(); }
  void end_choice(const std::function<Choice()>& describe) {
    collector_->end_choice(session_->position() - 1, describe);
  }

  /// Writes the file. False with error() set if that fails. progress: optional.
  bool finish(const Text& text, const Tokenizer& tokenizer, const Progress& progress = nullptr) {
    session_->observe(nullptr);
    collector_->end();
    const std::string data = json_of(text, tokenizer, progress);
    const std::string bytes = json_only_ ? data + "\n" : page_with(data, random_nonce());
    return file_.write(bytes.data(), bytes.size()) && file_.finish();
  }
  /// Tokens that the last file explains.
  size_t explained() const { return explained_; }

  /// The data as a JSON object. README.md describes its fields.
  std::string json_of(const Text& text, const Tokenizer& tokenizer, const Progress& progress = nullptr) {
    const Model& model = session_->model();
    Parts parts(model, session_->kernel(), session_->threads());
    const Collector& seen = *collector_;
    // Positions beyond the session's own were guessed wrongly.
    const size_t n = std::min({seen.observed(), text.ids.size(), size_t(session_->position())});
    explained_ = n;
    std::vector<int> ids(text.ids.begin(), text.ids.begin() + long(std::min(text.ids.size(), n + 1)));
    if (ids.size() == n && n > 0 && seen.choice(n - 1)) ids.push_back(seen.choice(n - 1)->id);
    shown_.clear();
    Fields all = {{"format", json("pocketllama explain 2")},
                  {"version", json(kVersion)},
                  {"model", model_json(text)},
                  {"options", options_json(text)},
                  {"positions", std::to_string(n)},
                  {"cut", text.ids.size() > n + 1 ? std::to_string(text.ids.size()) : "0"}};
    all.push_back({"lens", lens_json(parts, ids, n, progress)});
    all.push_back({"tokens", tokens_json(ids, tokenizer)});
    all.push_back({"choices", choices_json(ids, n)});
    add_attention(all, parts, ids, n);
    all.push_back({"residual", residual_json(n)});
    all.push_back({"cost", cost_json(parts, n)});
    all.push_back({"journey", n > 0 ? journey_json(parts, ids, n) : "null"});
    all.push_back({"pieces", pieces_json(text)});
    all.push_back({"sources", sources_json()});
    return json_object(all);
  }

 private:
  static std::string number(size_t n) { return std::to_string(n); }
  static std::string number(int n) { return std::to_string(n); }

  std::string model_json(const Text& text) const {
    const Model& m = session_->model();
    const Config& c = m.config;
    static constexpr const char* kTypes[] = {"f32", "q8", "q4"};
    double parameters = 0;
    for (const TensorSpec& t : tensor_specs(c))
      if (!(c.tied && t.name == "output")) parameters += double(t.rows) * double(t.cols);
    return json_object({{"name", json(base_name(text.model))},
                        {"provenance", json(m.provenance())},
                        {"parameters", json(parameters)},
                        {"bytes", json(double(m.file_bytes))},
                        {"dim", number(c.dim)},
                        {"hidden_dim", number(c.hidden_dim)},
                        {"layers", number(c.n_layers)},
                        {"heads", number(c.n_heads)},
                        {"kv_heads", number(c.n_kv_heads)},
                        {"head_dim", number(c.head_dim)},
                        {"vocab_size", number(c.vocab_size)},
                        {"context", number(session_->context())},
                        {"rope_theta", json(double(c.rope_theta))},
                        {"rope", c.has_rope(0) ? "true" : "false"},
                        {"type", json(kTypes[int(m.layers[0].wq.type)])}});
  }
  static std::string options_json(const Text& t) {
    const SamplerOptions& o = t.sampler;
    std::string seed = std::to_string(o.seed);
    if (o.seed > uint64_t(1) << 53) seed = json(seed);  // a string: numbers of JavaScript have 53 bits
    return json_object({{"mode", json(t.mode)},
                        {"temperature", json(o.temperature)},
                        {"top_p", json(o.top_p)},
                        {"top_k", number(o.top_k)},
                        {"min_p", json(o.min_p)},
                        {"repeat_penalty", json(o.repeat_penalty)},
                        {"seed", seed},
                        {"grammar", t.constrained ? "true" : "false"}});
  }

  // Top tokens and entropy by layer: (layers + 1, n).
  std::string lens_json(Parts& parts, const std::vector<int>& ids, size_t n, const Progress& progress) {
    const Config& c = session_->model().config;
    size_t chosen = 0;
    for (size_t i = 0; i < n; i++) chosen += collector_->choice(i) != nullptr;
    const LensPlan plan = lens_plan(session_->model(), n, chosen);
    embeddings_.assign(n * size_t(padded(c.dim)), 0.f);
    for (size_t i = 0; i < n; i++)
      session_->model().read_row(session_->model().token_embedding, ids[i], &embeddings_[i * size_t(padded(c.dim))]);
    struct Row {
      int layer;
      size_t position;
      Summarizer sum;
    };
    std::vector<Row> shown;
    for (int l = 0; l <= c.n_layers; l++)
      for (size_t i = 0; i < n; i++)
        if (plan.shows(l, i)) shown.push_back({l, i, Summarizer(i + 1 < ids.size() ? ids[i + 1] : -1)});
    std::vector<std::vector<float>> work{size_t{kChunk}};  // of each row of a chunk
    const auto exp = [&](float* x, int size) { parts.exp(x, size); };
    if (progress) progress("logit lens", 0, shown.size());
    const auto at = [&](size_t r) {
      const auto& [layer, i, sum] = shown[r];
      return layer == 0 ? embedding(i) : collector_->output(layer - 1, i);
    };
    parts.logits(shown.size(), at, [&](size_t r, int first, const float* logits, int size) {
      shown[r].sum.add(logits, first, size, exp, work[r % size_t(kChunk)]);
    });
    const size_t cells = size_t(c.n_layers + 1) * n, k = Summary::kTop;
    std::vector<int32_t> top(cells * k, -1);
    std::vector<float> p(cells * k), entropy(cells, std::numeric_limits<float>::quiet_NaN()), next = entropy;
    for (const auto& [layer, i, sum] : shown) {
      const Summary s = sum.summary();
      const size_t cell = size_t(layer) * n + i;
      std::copy(s.ids.begin(), s.ids.end(), &top[cell * k]);
      std::copy(s.p.begin(), s.p.end(), &p[cell * k]);
      entropy[cell] = s.entropy;
      next[cell] = s.p_next;
      shown_.insert(s.ids.begin(), s.ids.end());
    }
    next_.assign(next.end() - long(n), next.end());
    std::vector<std::string> layers;
    for (int l = 0; l <= c.n_layers; l++) layers.push_back(number(l));
    return json_object({{"layers", json_array(layers)},
                        {"top", number(Summary::kTop)},
                        {"ids", base64_json(top)},
                        {"p", base64_json(p)},
                        {"entropy", base64_json(entropy)},
                        {"next", base64_json(next)}});
  }

  // Each token with its probability at the position before it; null: of the first.
  std::string tokens_json(const std::vector<int>& ids, const Tokenizer& tokenizer) {
    std::vector<std::string> list;
    Tokenizer::Stream stream(tokenizer);
    for (size_t i = 0; i < ids.size(); i++) {
      const Choice* choice = i > 0 ? collector_->choice(i - 1) : nullptr;
      const std::string bytes = printed_text(tokenizer, stream, ids[i]);
      std::string hex;
      for (const char byte : bytes) {
        char two[4];
        std::snprintf(two, sizeof two, "%02x", unsigned(uint8_t(byte)));
        hex += two;
      }
      shown_.insert(ids[i]);
      list.push_back(
          json_object({{"id", number(ids[i])},
                       {"bytes", json(hex)},
                       {"control", tokenizer.type(ids[i]) == Tokenizer::PieceType::control ? "true" : "false"},
                       {"new", choice && choice->id == ids[i] ? "true" : "false"},
                       {"p", i > 0 && i <= next_.size() ? json(double(next_[i - 1])) : "null"}}));
    }
    return json_array(list);
  }

  // For each position null, or how the next token was chosen.
  std::string choices_json(const std::vector<int>& ids, size_t n) {
    std::vector<std::string> list;
    for (size_t i = 0; i < n; i++) {
      const Choice* c = collector_->choice(i);
      if (!c || i + 1 >= ids.size() || c->id != ids[i + 1]) {
        list.push_back("null");
        continue;
      }
      std::vector<std::string> alternatives;
      for (const Alternative& a : c->list) {
        alternatives.push_back(json_array(
            {number(a.id), json(double(a.p)), json(double(a.tempered)), json(double(a.final)), json(name_of(a.cut))}));
        shown_.insert(a.id);
      }
      list.push_back(json_object({{"id", number(c->id)},
                                  {"kept", number(c->kept)},
                                  {"p_kept", json(double(c->p_kept))},
                                  {"list", json_array(alternatives)}}));
    }
    return json_array(list);
  }

  // The maps of each layer, (heads, triangle of n) bytes; what heads look at; rollout.
  void add_attention(Fields& all, Parts& parts, const std::vector<int>& ids, size_t n) const {
    const Config& c = session_->model().config;
    const size_t layers = size_t(c.n_layers), heads = size_t(c.n_heads);
    const Kinds kinds_of_text(std::vector<int>(ids.begin(), ids.begin() + long(n)));
    std::vector<uint8_t> byte_of(Collector::kMostCode + 1);
    for (size_t i = 0; i < byte_of.size(); i++) byte_of[i] = to_rough_byte(float(i) / Collector::kMostCode);
    std::vector<std::string> maps(layers);
    std::vector<float> kinds(layers * heads * HeadKind::count);
    std::vector<std::vector<float>> mean(layers);
    parts.in_parallel(layers, [&](size_t l) {
      std::vector<uint8_t> bytes(heads * triangle(n));
      mean[l].resize(triangle(n));
      const float share = 1.f / (float(Collector::kMostCode) * float(heads));
      for (size_t i = 0; i < n; i++)
        for (size_t h = 0; h < heads; h++) {
          const uint16_t* const row = collector_->codes(int(l), int(h), i);
          uint8_t* const out = &bytes[h * triangle(n) + triangle(i)];
          float* const sum = &mean[l][triangle(i)];
          for (size_t j = 0; j <= i; j++) out[j] = byte_of[row[j]];
          size_t j = 0;
          for (; j + 16 <= i + 1; j += 16)  // so many at a time are SIMD
            for (size_t k = 0; k < 16; k++) sum[j + k] += float(row[j + k]) * share;
          for (; j <= i; j++) sum[j] += float(row[j]) * share;
        }
      for (size_t h = 0; h < heads; h++) {
        const HeadKind kind =
            kinds_of_text.of([&](size_t i, size_t j) { return collector_->weight(int(l), int(h), i, j); });
        std::copy(kind.score.begin(), kind.score.end(), &kinds[(l * heads + h) * HeadKind::count]);
      }
      const std::string packed = Deflate::pack(bytes);
      maps[l] = "\"" + base64(packed.data(), packed.size()) + "\"";
    });
    const auto each = [&](size_t count, const auto& f) { parts.in_parallel(count, f); };
    const std::vector<float> flow = rollout(
        c.n_layers, n, [&](int l) { return mean[size_t(l)].data(); }, each);
    std::vector<uint8_t> bytes;
    for (const float p : flow) bytes.push_back(to_byte(p));
    all.push_back({"attention", json_array(maps)});
    all.push_back({"kinds", base64_json(kinds)});
    all.push_back({"rollout", base64_json(bytes)});
  }

  // Lengths of the residual stream, (n_layers + 1, n), and of what attention and MLP add, (n_layers, n).
  std::string residual_json(size_t n) const {
    const Config& c = session_->model().config;
    std::vector<float> norms, attention, mlp;
    for (int l = 0; l <= c.n_layers; l++)
      for (size_t i = 0; i < n; i++)
        norms.push_back(Collector::length(l == 0 ? embedding(i) : collector_->output(l - 1, i), c.dim));
    for (int l = 0; l < c.n_layers; l++)
      for (size_t i = 0; i < n; i++) {
        attention.push_back(l > 0 ? collector_->attention_update(l, i)
                                  : Collector::distance(collector_->first_middle(i), embedding(i), c.dim));
        mlp.push_back(collector_->mlp_update(l, i));
      }
    return json_object(
        {{"norms", base64_json(norms)}, {"attention", base64_json(attention)}, {"mlp", base64_json(mlp)}});
  }

  std::string times_json(const Times& t) const {
    static constexpr const char* kNames[] = {"qkv", "attention", "wo", "mlp", "logits", "sampling"};
    Fields fields = {{"passes", number(t.passes)}, {"tokens", number(t.tokens)}};
    for (int i = 0; i < Times::count; i++) fields.push_back({kNames[i], json(timed_ ? t.seconds[i] : 0.0)});
    return json_object(fields);
  }
  std::string cost_json(Parts& parts, size_t n) const {
    const Model& m = session_->model();
    const Config& c = m.config;
    const KvType kv = session_->kv_f32() ? KvType::f32 : KvType::q8;
    const SessionOptions o = {session_->context(), session_->threads(), kv, nullptr};
    std::vector<std::string> memory;
    const auto now = memory_of(m, o, int(n)), full = memory_of(m, o, session_->context());
    for (size_t i = 0; i < now.size(); i++)
      memory.push_back(json_object(
          {{"name", json(now[i].name)}, {"bytes", json(double(now[i].bytes))}, {"full", json(double(full[i].bytes))}}));
    double qkv = 0, wo = 0, mlp = 0;
    for (const Layer& l : m.layers) {
      qkv += double(l.wq.bytes + l.wk.bytes + l.wv.bytes);
      wo += double(l.wo.bytes);
      mlp += double(l.w1.bytes + l.w3.bytes + l.w2.bytes);
    }
    const double weights = qkv + wo + mlp + double(m.output.bytes);
    const double taken = timed_ ? parts.seconds_to_read_weights(seconds) : std::numeric_limits<double>::infinity();
    return json_object(
        {{"memory", json_array(memory)},
         {"kv", json(session_->kv_f32() ? "f32" : "q8")},
         {"kv_bytes_per_token",
          json(double(kv_block_bytes(c.head_dim, session_->kv_f32()) / kBlockKeys) * c.n_layers * c.n_kv_heads)},
         {"kernel", json(session_->kernel())},
         {"threads", number(session_->threads())},
         {"read_gb_s", json(taken > 0 ? weights / taken / 1e9 : 0.0)},
         {"weights",
          json_object(
              {{"qkv", json(qkv)}, {"wo", json(wo)}, {"mlp", json(mlp)}, {"logits", json(double(m.output.bytes))}})},
         {"single", times_json(collector_->single())},
         {"several", times_json(collector_->several())}});
  }

  // The token whose successor was the first to be chosen, of the last text that was generated.
  int journey_position(const std::vector<int>& ids, size_t n) const {
    const auto chosen = [&](size_t i) {
      const Choice* c = collector_->choice(i);
      return c && i + 1 < ids.size() && c->id == ids[i + 1];
    };
    size_t i = n;
    while (i > 0 && !chosen(i - 1)) i--;
    if (i == 0) return int(n) - 1;
    while (i > 1 && chosen(i - 2)) i--;
    return int(i) - 1;
  }
  // The head of layer 0 that looks most at other tokens than the first one and this one.
  int journey_head(int position) const {
    const size_t p = size_t(position);
    int best = 0;
    float most = -1;
    for (int h = 0; h < session_->model().config.n_heads; h++) {
      const float others = 1 - collector_->weight(0, h, p, 0) - (p > 0 ? collector_->weight(0, h, p, p) : 0.f);
      if (others > most) best = h;
      most = std::max(most, others);
    }
    return best;
  }
  std::string journey_json(Parts& parts, const std::vector<int>& ids, size_t n) {
    const int position = journey_position(ids, n), head = journey_head(position);
    const Journey j = follow(*session_, *collector_, parts, ids[size_t(position)], position, head);
    const std::vector<int> top = largest(j.logits.data(), int(j.logits.size()), 10);
    std::vector<std::string> logits;
    for (const int id : top) {
      logits.push_back(json_array({number(id), json(double(j.logits[size_t(id)]))}));
      shown_.insert(id);
    }
    std::vector<std::string> looked_at;
    for (const int t : j.top) looked_at.push_back(number(t));
    Fields fields = {{"position", number(position)},
                     {"head", number(head)},
                     {"rms", json(double(j.rms))},
                     {"top", json_array(looked_at)}};
    for (const auto& [name, v] : std::initializer_list<std::pair<std::string_view, const std::vector<float>*>>{
             {"x", &j.x},
             {"xn", &j.xn},
             {"q", &j.q},
             {"k", &j.k},
             {"v", &j.v},
             {"q_rope", &j.q_rope},
             {"k_rope", &j.k_rope},
             {"angles", &j.angles},
             {"scores", &j.scores},
             {"weights", &j.weights},
             {"top_values", &j.top_values},
             {"output", &j.output},
             {"attention_update", &j.attention_update},
             {"middle", &j.middle},
             {"middle_norm", &j.middle_norm},
             {"gate", &j.gate},
             {"up", &j.up},
             {"hidden", &j.hidden},
             {"mlp_update", &j.mlp_update},
             {"layer_output", &j.layer_output},
             {"last", &j.last},
             {"last_norm", &j.last_norm}})
      fields.push_back({name, base64_json(*v)});
    fields.push_back({"logits", json_array(logits)});
    return json_object(fields);
  }

  std::string pieces_json(const Text& text) const {
    Fields fields;
    std::vector<std::string> names;
    names.reserve(shown_.size());
    for (const int id : shown_) names.push_back(std::to_string(id));
    size_t i = 0;
    for (const int id : shown_) {
      if (id >= 0) fields.push_back({names[i], json(text.text_of(id))});
      i++;
    }
    return json_object(fields);
  }
  static std::string sources_json() {
    const std::string engine = engine_source();
    Fields fields;
    for (const Source& s : kSources) {
      const Excerpt e = find_function(engine, s.head);
      fields.push_back({s.name, json_object({{"line", number(e.line)}, {"text", json(e.text)}})});
    }
    return json_object(fields);
  }

  const float* embedding(size_t i) const { return &embeddings_[i * size_t(padded(session_->model().config.dim))]; }

  OutputFile file_;
  bool json_only_ = false, timed_ = true;
  Session* session_ = nullptr;
  std::optional<Collector> collector_;
  size_t explained_ = 0;
  std::vector<float> embeddings_;  // (positions, dim padded)
  std::vector<float> next_;        // (positions): the probability of the next token, after the last layer
  std::set<int> shown_;            // tokens that the page shows
};

/// The data of a text that was written before. The session, which is empty, processes text.ids again, all at once, and
/// from position `prompt` on the tokens are chosen again, with the same result. ended: the text ends because the model
/// chose to end it. go_on(): false stops. "": stopped, or session.error has the reason.
inline std::string explain_again(Session& session, const Text& text, size_t prompt, bool ended,
                                 const Tokenizer& tokenizer, const std::function<bool()>& go_on) {
  class OpenSampler : public Sampler {
   public:
    using Sampler::Sampler;
    Choice choose(const float* logits, int n) {
      const int id = (*this)(logits, n);
      return explain_choice(id, logits, n, options_, work_, candidates_);
    }
  } sampler(text.sampler);
  Explanation explanation;
  explanation.watch(session, false);
  for (size_t i = 0; i < prompt; i++) sampler.remember(text.ids[i]);
  const size_t unread = !ended && text.ids.size() > prompt;  // the last token: nothing was chosen after it
  const size_t n = std::min(text.ids.size() - unread, size_t(kMostTokens));
  const bool good = session.forward(text.ids.data(), n, [&](size_t i, const float* logits) {
    if (i + 1 >= prompt && (i + 1 < text.ids.size() || ended)) {
      explanation.begin_choice();
      explanation.end_choice([&] { return sampler.choose(logits, session.vocab_size()); });
    }
    return go_on();
  });
  return good && session.position() == int(n) ? explanation.json_of(text, tokenizer) : "";
}

}  // namespace pocket::explain

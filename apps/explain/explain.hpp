// explain.hpp: --explain: watches a session while it writes a text, and then writes what happened inside the model: as a
// page that needs nothing but a browser, or as JSON. README.md describes both.
#pragma once

#include <optional>
#include <random>
#include <set>

#include "../../export/json_writer.hpp"
#include "../../export/memory.hpp"
#include "../../export/output_file.hpp"
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

/// The page with `data`, a JSON object, in it. No text in the data can end its element: each < and > is escaped. nonce:
/// what the page's policy requires of a script, a number that nobody can guess.
inline std::string page_with(const std::string& data, const std::string& nonce) {
  std::string page(kPage), escaped;
  escaped.reserve(data.size() + data.size() / 64);
  size_t from = 0;
  for (size_t at; (at = data.find_first_of("<>&", from)) != data.npos; from = at + 1) {
    escaped.append(data, from, at - from);
    escaped += data[at] == '<' ? "\\u003c" : data[at] == '>' ? "\\u003e" : "\\u0026";
  }
  escaped.append(data, from, data.npos);
  const std::string place = "NONCE";
  for (size_t at = 0; (at = page.find(place, at)) != page.npos; at += nonce.size())
    page.replace(at, place.size(), nonce);
  const std::string data_place = "POCKET_DATA";
  const size_t at = page.find(data_place);
  return page.substr(0, at) + escaped + page.substr(at + data_place.size());
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

  /// Watches a session, which must outlive this object or end().
  void watch(Session& session) {
    session_ = &session;
    collector_.emplace(session.model());
    session.observe([this](const Observation& o) { collector_->observe(o); });
  }
  bool watching() const { return session_ != nullptr; }

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
    Fields all = {{"format", json("pocketllama explain 1")},
                  {"version", json(kVersion)},
                  {"model", model_json(text)},
                  {"options", options_json(text)},
                  {"positions", std::to_string(n)},
                  {"cut", text.ids.size() > n + 1 ? std::to_string(text.ids.size()) : "0"}};
    all.push_back({"lens", lens_json(parts, ids, n, progress)});
    all.push_back({"tokens", tokens_json(ids, tokenizer)});
    all.push_back({"choices", choices_json(ids, n)});
    add_attention(all, ids, n);
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
    return json_object({{"mode", json(t.mode)},
                        {"temperature", json(o.temperature)},
                        {"top_p", json(o.top_p)},
                        {"top_k", number(o.top_k)},
                        {"min_p", json(o.min_p)},
                        {"repeat_penalty", json(o.repeat_penalty)},
                        {"seed", std::to_string(o.seed)},
                        {"grammar", t.constrained ? "true" : "false"}});
  }

  // Top tokens and entropy by layer: (n_layers + 1, n), of which the first row is the embedding.
  std::string lens_json(Parts& parts, const std::vector<int>& ids, size_t n, const Progress& progress) {
    const Config& c = session_->model().config;
    const size_t layers = size_t(c.n_layers) + 1;
    std::vector<Summary> all(layers * n);
    embeddings_.assign(n * size_t(padded(c.dim)), 0.f);
    for (size_t i = 0; i < n; i++)
      session_->model().read_row(session_->model().token_embedding, ids[i], &embeddings_[i * size_t(padded(c.dim))]);
    std::vector<std::vector<float>> work{size_t{kChunk}};  // of each row of a chunk
    for (size_t l = 0; l < layers; l++) {
      if (progress) progress("logit lens", l, layers);
      const auto at = [&](size_t i) { return l == 0 ? embedding(i) : collector_->output(int(l) - 1, i); };
      parts.logits(n, at, [&](size_t i, const float* logits) {
        all[l * n + i] = summarize(
            logits, c.vocab_size, i + 1 < ids.size() ? ids[i + 1] : -1, [&](float* x, int size) { parts.exp(x, size); },
            work[i % size_t(kChunk)]);
      });
    }
    std::vector<int32_t> top;
    std::vector<float> p, entropy, next;
    for (const Summary& s : all) {
      top.insert(top.end(), s.ids.begin(), s.ids.end());
      p.insert(p.end(), s.p.begin(), s.p.end());
      entropy.push_back(s.entropy);
      next.push_back(s.p_next);
      for (const int id : s.ids) shown_.insert(id);
    }
    next_.assign(next.end() - long(n), next.end());
    return json_object({{"top", number(Summary::kTop)},
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
  void add_attention(Fields& all, const std::vector<int>& ids, size_t n) const {
    const Config& c = session_->model().config;
    std::vector<std::string> layers;
    std::vector<float> kinds;
    const Kinds kinds_of_text(std::vector<int>(ids.begin(), ids.begin() + long(n)));
    const uint16_t least = to_code(kLeastWeight, Collector::kMostCode);
    for (int l = 0; l < c.n_layers; l++) {
      std::vector<uint8_t> bytes;
      bytes.reserve(size_t(c.n_heads) * triangle(n));
      for (int h = 0; h < c.n_heads; h++) {
        for (size_t i = 0; i < n; i++) {
          const uint16_t* const row = collector_->codes(l, h, i);
          for (size_t j = 0; j <= i; j++) bytes.push_back(row[j] < least ? 0 : uint8_t((row[j] + 128) / 257));
        }
        const HeadKind kind = kinds_of_text.of([&](size_t i, size_t j) { return collector_->weight(l, h, i, j); });
        kinds.insert(kinds.end(), kind.score.begin(), kind.score.end());
      }
      layers.push_back(base64_json(bytes));
    }
    const std::vector<float> flow = rollout(c.n_layers, n, [&](int l, size_t i) { return collector_->mean(l, i); });
    std::vector<uint8_t> bytes;
    for (const float p : flow) bytes.push_back(to_byte(p));
    all.push_back({"attention", json_array(layers)});
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

  static std::string times_json(const Times& t) {
    static constexpr const char* kNames[] = {"qkv", "attention", "wo", "mlp", "logits", "sampling"};
    Fields fields = {{"passes", number(t.passes)}, {"tokens", number(t.tokens)}};
    for (int i = 0; i < Times::count; i++) fields.push_back({kNames[i], json(t.seconds[i])});
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
    const double taken = parts.seconds_to_read_weights(seconds);
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
    Fields fields = {{"position", number(position)}, {"head", number(head)}, {"rms", json(double(j.rms))}};
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
  bool json_only_ = false;
  Session* session_ = nullptr;
  std::optional<Collector> collector_;
  size_t explained_ = 0;
  std::vector<float> embeddings_;  // (positions, dim padded)
  std::vector<float> next_;        // (positions): the probability of the next token, after the last layer
  std::set<int> shown_;            // tokens that the page shows
};

}  // namespace pocket::explain

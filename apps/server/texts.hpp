// texts.hpp: the routes about tokens: /tokenize, /detokenize, /tokenizer_info, and /v1/embeddings.
#pragma once

#include "http_server.hpp"
#include "worker.hpp"

namespace pocket::server {

using openai::Json;
using openai::refuse;
using openai::type_of;

// ---- Tokens ----

inline bool flag(const Json& body, const char* name, bool otherwise) {
  const auto found = body.find(name);
  if (found == body.end() || found->is_null()) return otherwise;
  if (!found->is_boolean()) refuse(name, "a boolean", type_of(*found));
  return found->get<bool>();
}

// The ids in a JSON array. Throws Refusal.
inline std::vector<int> ids_of_json(const Json& list, const std::string& name, int vocab_size) {
  std::vector<int> ids;
  if (!list.is_array()) refuse(name, "an array of token ids", type_of(list));
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t(vocab_size))
      refuse(name, "token ids below " + std::to_string(vocab_size), id.is_number_integer() ? id.dump() : type_of(id));
    ids.push_back(id.get<int>());
  }
  return ids;
}

inline constexpr size_t kMostTokenTexts = 1 << 18;  // in a response of /tokenize, which needs 100 bytes for each

// Of a `prompt` (in llama.cpp `content`), or of the `messages` of a chat, with its `tools`. written: the body as text.
inline OrderedJson tokenize(openai::ServedModel& model, const Json& body, std::string_view written) {
  if (!body.is_object()) refuse("body", "an object", type_of(body));
  const char* name = body.contains("content") ? "content" : "prompt";
  const bool special = flag(body, "add_special_tokens", name[0] == 'p');
  std::vector<int> ids;
  if (body.contains("messages")) {
    Json chat = {{"messages", body["messages"]}};
    if (body.contains("tools")) chat["tools"] = body["tools"];
    const auto request =
        openai::RequestParser::parse(openai::Endpoint::chat, chat, openai::Service::server, written, model.tool_format);
    ids = openai::prompt_tokens(model.llama, request, model.context());
  } else {
    const auto text = body.find(name);
    if (text == body.end() || !text->is_string())
      refuse(name, "a string", text == body.end() ? "nothing" : type_of(*text));
    const Tokenizer& tokenizer = model.llama.tokenizer();
    ids = model.llama.encode(text->get_ref<const std::string&>(), special);
    for (const int id : {tokenizer.bos(), tokenizer.eos()})  // lm_eval asks for them by their names
      if (!special && id >= 0 && *text == std::string(tokenizer.piece(id))) ids = {id};
  }
  const bool with_texts = flag(body, "return_token_strs", false);
  if (with_texts && ids.size() > kMostTokenTexts)
    refuse("return_token_strs", "false for more than " + std::to_string(kMostTokenTexts) + " tokens",
           "true for " + std::to_string(ids.size()));
  OrderedJson result = {{"count", ids.size()}, {"max_model_len", model.context()}, {"tokens", ids}};
  if (with_texts) {
    result["token_strs"] = OrderedJson::array();
    for (const int id : ids) result["token_strs"].push_back(token_bytes(model.llama.tokenizer(), id));
  }
  return result;
}

inline OrderedJson detokenize(openai::ServedModel& model, const Json& body) {
  if (!body.is_object()) refuse("body", "an object", type_of(body));
  const auto tokens = body.find("tokens");
  if (tokens == body.end()) refuse("tokens", "an array of token ids", "nothing");
  const std::string text = model.llama.tokenizer().decode(ids_of_json(*tokens, "tokens", model.llama.vocab_size()));
  return {{"prompt", text}, {"content", text}};
}

inline OrderedJson tokenizer_info(openai::ServedModel& model) {
  const Tokenizer& t = model.llama.tokenizer();
  const auto piece = [&](int id) { return id >= 0 ? OrderedJson(std::string(t.piece(id))) : OrderedJson(nullptr); };
  const auto number = [](int id) { return id >= 0 ? OrderedJson(id) : OrderedJson(nullptr); };
  const auto& stop =
      model.llama.chat_template()->known() ? model.llama.chat_template()->stop_ids : model.llama.file().stop_ids;
  return {{"tokenizer_class", t.kind() == Tokenizer::Kind::sentencepiece ? "SentencePiece" : "byte-level BPE"},
          {"vocab_size", t.size()},
          {"model_max_length", model.context()},
          {"bos_token", piece(t.bos())},
          {"eos_token", piece(t.eos())},
          {"bos_token_id", number(t.bos())},
          {"eos_token_id", number(t.eos())},
          {"add_bos_token", !model.llama.encode("", true).empty()},
          {"stop_token_ids", stop},
          {"has_chat_template", model.llama.chat_template()->known()}};
}

// ---- Embeddings ----

// The mean over the tokens of a text of the last layer, after the final norm, scaled to length 1. In double and in the
// order of the tokens, so that it is the same on every machine.
class MeanOfLastLayer {
 public:
  explicit MeanOfLastLayer(const Model& model) : model_(model), sum_(size_t(model.config.dim), 0.0) {}

  void add(const Observation& o) {
    if (o.kind != Observation::layer_output || o.layer + 1 != model_.config.n_layers) return;
    double squares = 0;
    for (int i = 0; i < o.size; i++) squares += double(o.data[i]) * double(o.data[i]);
    const double scale = 1 / std::sqrt(squares / o.size + double(model_.config.norm_eps));
    for (int i = 0; i < o.size; i++)
      sum_[size_t(i)] += double(o.data[i]) * scale * double(floats(model_.final_norm)[i]);
  }
  std::vector<float> result() const {
    double squares = 0;
    for (const double x : sum_) squares += x * x;
    const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
    std::vector<float> mean;
    for (const double x : sum_) mean.push_back(float(x * scale));
    return mean;
  }

 private:
  const Model& model_;
  std::vector<double> sum_;
};

inline std::string base64(const void* data, size_t n) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const auto* bytes = static_cast<const uint8_t*>(data);
  std::string out;
  for (size_t i = 0; i < n; i += 3) {
    uint32_t bits = uint32_t(bytes[i]) << 16;
    if (i + 1 < n) bits |= uint32_t(bytes[i + 1]) << 8;
    if (i + 2 < n) bits |= bytes[i + 2];
    for (size_t k = 0; k < 4; k++) out += i + k <= n ? kDigits[bits >> (18 - 6 * k) & 63] : '=';
  }
  return out;
}

class Embeddings {
 public:
  Embeddings(openai::ServedModel& model, Worker& worker) : model_(model), worker_(worker) {}

  // What a request asks for.
  struct Task {
    std::vector<std::vector<int>> inputs;  // tokens
    bool in_base64;
  };
  // Throws Refusal.
  Task read(const Json& body) {
    std::vector<std::vector<int>> inputs = read_inputs(body);
    return {std::move(inputs), reads_base64(body)};
  }

  // The body of the response. Throws Refusal.
  OrderedJson reply(const Task& task, int fd) {
    OrderedJson data = OrderedJson::array();
    size_t tokens = 0;
    for (const auto& ids : task.inputs) tokens += ids.size();
    for (const std::vector<float>& values : compute(task.inputs, fd)) {
      OrderedJson embedding = values;
      if (task.in_base64) embedding = base64(values.data(), values.size() * sizeof(float));
      data.push_back({{"object", "embedding"}, {"index", data.size()}, {"embedding", std::move(embedding)}});
    }
    return {{"object", "list"},
            {"data", std::move(data)},
            {"model", model_.name},
            {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}};
  }

 private:
  static constexpr size_t kMostInputs = 2048;  // as in OpenAI's API

  size_t most_tokens() const { return size_t(model_.context()); }

  bool reads_base64(const Json& body) const {
    const auto format = body.find("encoding_format");
    if (const auto n = body.find("dimensions"); n != body.end() && !n->is_null() && *n != model_.llama.model.config.dim)
      refuse("dimensions", std::to_string(model_.llama.model.config.dim) + ", the only supported value", n->dump());
    if (format == body.end() || format->is_null() || *format == "float") return false;
    if (*format != "base64") refuse("encoding_format", "float or base64", "another value");
    return true;
  }

  // input: a text, a list of texts, a list of token ids, or a list of those.
  std::vector<std::vector<int>> read_inputs(const Json& body) {
    if (!body.is_object()) refuse("body", "an object", type_of(body));
    const auto input = body.find("input");
    if (input == body.end()) refuse("input", "a string or an array", "nothing");
    const bool many = input->is_array() && !input->empty() && !(*input)[0].is_number();
    std::vector<std::vector<int>> all;
    if (!many) return {read_input(*input, "input")};
    if (input->size() > kMostInputs)
      refuse("input", "at most " + std::to_string(kMostInputs) + " texts", std::to_string(input->size()));
    for (const Json& one : *input) all.push_back(read_input(one, "input[" + std::to_string(all.size()) + "]"));
    return all;
  }

  std::vector<int> read_input(const Json& input, const std::string& name) {
    std::vector<int> ids;
    if (input.is_array())
      ids = ids_of_json(input, name, model_.llama.vocab_size());
    else if (!input.is_string())
      refuse(name, "a string or an array of token ids", type_of(input));
    else if (model_.llama.least_tokens(input.get_ref<const std::string&>()) <= most_tokens())
      ids = model_.llama.encode(input.get_ref<const std::string&>(), true);
    else
      ids.resize(most_tokens() + 1);  // too long in any case
    if (ids.empty()) refuse(name, "at least one token", "an empty text");
    if (ids.size() > most_tokens())
      throw Refusal{name + ": expected at most " + std::to_string(most_tokens()) + " tokens, found more", "input",
                    "context_length_exceeded"};
    return ids;
  }

  // In batches of as many texts as the worker has room for. The limit of the queue applies to the first batch only.
  std::vector<std::vector<float>> compute(const std::vector<std::vector<int>>& inputs, int fd) {
    std::vector<std::vector<float>> results;
    while (results.size() < inputs.size()) {
      const size_t n = std::min(inputs.size() - results.size(), worker_.room());
      const auto batch = compute_batch(inputs.data() + results.size(), n, fd, !results.empty());
      results.insert(results.end(), batch.begin(), batch.end());
    }
    return results;
  }

  std::vector<std::vector<float>> compute_batch(const std::vector<int>* inputs, size_t n, int fd, bool admitted) {
    std::vector<MeanOfLastLayer> means(n, MeanOfLastLayer(model_.llama.model));
    std::mutex mutex;
    std::condition_variable changed;
    size_t running = n;
    std::string failure;
    std::vector<Generation> generations(n);
    for (size_t i = 0; i < n; i++) {
      generations[i].prompt = inputs[i];
      generations[i].max_tokens = 0;
      generations[i].observe = [&mean = means[i]](const Observation& o) { mean.add(o); };
      generations[i].on_end = [&](openai::End end, const std::string& error) {
        std::lock_guard lock(mutex);
        if (end != openai::End::limit) failure = error.empty() ? "cancelled" : error;
        running--;
        changed.notify_one();
      };
    }
    worker_.submit(std::move(generations), fd, admitted);
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return running == 0; });
    if (!failure.empty()) throw Refusal{failure, "", "server_error", 503};
    std::vector<std::vector<float>> results;
    for (const MeanOfLastLayer& mean : means) results.push_back(mean.result());
    return results;
  }

  openai::ServedModel& model_;
  Worker& worker_;
};

}  // namespace pocket::server

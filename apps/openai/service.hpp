// service.hpp: what run-batch and the server have in common: the model with its name, fingerprint and workspace, the
// memory of its texts, and the options for all that.
#pragma once

#include "../cli/saved_session.hpp"
#include "response.hpp"
#include "scheduler.hpp"

namespace pocket::openai {

// The options of a model that replies to requests. A text option that was not given is "".
struct ModelArguments {
  std::string model, name, memory, kernel, kv = "auto";
  std::vector<std::string> lora;
  int parallel = 16, context = 0, threads = 0;
  bool no_mmap = false;

  Load load() const { return no_mmap ? Load::copy : Load::map; }
  SessionOptions session_options() const {
    const KvType type = kv == "q8" ? KvType::q8 : kv == "f32" ? KvType::f32 : KvType::automatic;
    return {context, threads, type, kernel.empty() ? nullptr : kernel.c_str()};
  }
  // Throws Failure.
  void check() const {
    if (kv != "auto" && kv != "q8" && kv != "f32")
      throw Failure{2, "--kv: expected auto, q8 or f32, found '" + kv + "'"};
  }
};

// Their options. A: the arguments of a program, derived from ModelArguments.
template <class A> struct ModelOptions {
  static constexpr Option<A> kName = {
      "", "--name", "NAME", "the model's name in requests and replies [its file name without .bin]", &A::name};
  static constexpr Option<A> kContext = {
      "",          "--ctx",
      "N",         "context size in tokens: of a prompt and its reply [the size the model was trained for]",
      &A::context, 1,
      1 << 22};
  static constexpr Option<A> kKv = {
      "", "--kv", "TYPE", "type of the KV cache: q8, f32 or auto (f32 for f32 models, else q8) [auto]", &A::kv};
  static constexpr Option<A> kLora = {"", "--lora", "FOLDER[:SCALE]",
                                      "add a LoRA adapter saved by PEFT or models/train, times SCALE [1]; repeatable",
                                      &A::lora};
  static constexpr Option<A> kParallel = {"", "--parallel", "N", "replies at once, at most [16]", &A::parallel,
                                          1,  kChunk};
  static constexpr Option<A> kMemory = {
      "", "--memory", "SIZE", "memory limit, such as 800MB or 2GB, which may reduce --parallel [3/4 of what is free]",
      &A::memory};
  static constexpr Option<A> kThreads = {"",          "--threads", "N", "number of threads that compute [one per CPU]",
                                         &A::threads, 1,           256};
  static constexpr Option<A> kKernel = {"", "--kernel", "NAME", "a name from run --kernels [the first]", &A::kernel};
  static constexpr Option<A> kNoMmap = {"", "--no-mmap", "",
                                        "read the model into memory instead of mapping its file, which may then change",
                                        &A::no_mmap};
};

// A size in bytes: a number and a unit, from B to TB, or KiB to TiB. Throws Failure.
inline size_t parse_size(const std::string& option, const std::string& text) {
  const size_t digits = std::min(text.find_first_not_of("0123456789."), text.size());
  std::string unit = text.substr(digits);
  const bool binary = unit.size() == 3 && unit[1] == 'i';
  if (binary) unit.erase(1, 1);
  if (unit.size() == 2 && unit[1] == 'B') unit.pop_back();
  const size_t power = unit.empty() ? 0 : std::string("BKMGT").find(unit == "k" ? "K" : unit);
  if (digits == 0 || unit.size() > 1 || power == std::string::npos)
    throw Failure{2, option + ": expected a size such as 800MB, 2GB or 1.5GiB, found '" + text + "'"};
  const double scale = std::pow(binary ? 1024.0 : 1000.0, double(power));
  return size_t(number(option, text.substr(0, digits), 0, 1e15 / scale, false) * scale);
}

// The name of a model file in requests and results.
inline std::string model_name(const ModelArguments& a) {
  if (!a.name.empty()) return a.name;
  const std::string file = base_name(a.model), end = ".bin";
  const bool has_end = file.size() > end.size() && file.compare(file.size() - end.size(), end.size(), end) == 0;
  return has_end ? file.substr(0, file.size() - end.size()) : file;
}

// Some chat templates contain today's date, which would change the results. It becomes this day, which the templates
// of Llama 3 use where there is no clock.
inline ChatTemplate with_fixed_date(ChatTemplate chat) {
  std::tm day = {};
  day.tm_year = 2024 - 1900;
  day.tm_mon = 6;
  day.tm_mday = 26;
  day.tm_hour = 12;
  day.tm_isdst = -1;
  for (ChatTemplate::Parts& parts : chat.slot)
    for (ChatTemplate::Part& part : parts)
      if (part.id == ChatTemplate::kDate) part = {ChatTemplate::kText, written_date(part.text, std::mktime(&day)), 0};
  return chat;
}

// An open model that replies to requests.
class ServedModel {
 public:
  // Throws Failure.
  explicit ServedModel(const ModelArguments& a)
      : llama(a.model, "", "", a.load(), a.lora),
        name(model_name(a)),
        workspace(llama.model, a.session_options()),
        args_(a) {
    if (!workspace.error.empty()) throw Failure{workspace.error.rfind("kernel", 0) == 0 ? 2 : 1, workspace.error};
    llama.set_chat_template(with_fixed_date(*llama.chat_template()));
    tool_format = openai::tool_format(llama.tokenizer(), *llama.chat_template());
  }

  int context() const { return args_.context > 0 ? args_.context : llama.trained_context(); }

  // Of every conversation.
  SessionOptions session_options() const { return llama.adapted(args_.session_options()); }

  // Everything but the request that a reply depends on.
  uint64_t settings_hash() const {
    const bool f32 = keeps_f32(args_.session_options(), llama.model);
    const std::string settings = std::to_string(model_identity(llama.model, llama.adapter())) + " " +
                                 std::to_string(context()) + (f32 ? " f32 " : " q8 ") + name;
    return hash_bytes(settings.data(), settings.size());
  }

  // Throws Failure if the memory does not suffice for a conversation that fills the context.
  Scheduler::Limits limits() const {
    const SessionOptions options = args_.session_options();
    size_t fixed = 0, conversation = 0;
    for (const MemoryItem& item : llama.memory_of(options, context()))
      (std::string_view(item.name) == "keys and values" ? conversation : fixed) += item.bytes;
    const size_t limit = args_.memory.empty() ? platform::available_memory() / 4 * 3 + llama.model.bytes_per_token
                                              : parse_size("--memory", args_.memory);
    fixed += size_t(args_.parallel) * size_t(llama.vocab_size()) * sizeof(float) + kProgramBytes;
    conversation += conversation / size_t(context()) * kBlockKeys;  // the last block is allocated as a whole
    if (limit < fixed + conversation && !args_.memory.empty())
      throw Failure{1, "--memory: expected at least " + std::to_string((fixed + conversation) / 1000000 + 1) +
                           "MB for this model and one conversation of " + std::to_string(context()) +
                           " tokens, found " + args_.memory + "; --ctx sets a smaller context"};
    return {args_.parallel, std::max(conversation, limit - std::min(limit, fixed))};
  }

  // A request may leave out the model, but not name another. Throws Refusal.
  void check_model(const Json& body) const {
    const auto model = body.find("model");
    if (model == body.end() || model->is_null() || *model == name || *model == base_name(args_.model)) return;
    if (!model->is_string()) refuse("model", "a string", type_of(*model));
    throw Refusal{"model: expected " + name + ", found '" + model->get<std::string>().substr(0, 80) + "'", "model",
                  "model_not_found", 404};
  }

  // A choice of a request, without its callbacks. Throws nothing.
  Generation generation(const Request& request, std::vector<int> prompt, int choice = 0) {
    Generation g;
    g.prompt = std::move(prompt);
    g.max_tokens = request.max_tokens;
    g.sampling = request.sampling;
    g.sampling.seed += uint64_t(choice);
    g.frequency_penalty = request.frequency_penalty;
    g.presence_penalty = request.presence_penalty;
    g.logit_bias = request.logit_bias;
    g.stop_ids = stop_ids_of(llama, request);
    return g;
  }

  cli::Llama llama;
  const std::string name;
  Workspace workspace;
  ToolFormat tool_format = ToolFormat::none;

 private:
  static constexpr size_t kProgramBytes = 16 << 20;  // the program, the tokenizer, and the requests in progress

  const ModelArguments args_;
};

}  // namespace pocket::openai

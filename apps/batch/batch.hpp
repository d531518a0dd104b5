// batch.hpp: replies to a file of requests.
#pragma once

#include <unordered_set>

#include "../cli/process_memory.hpp"
#include "../openai/response.hpp"
#include "../openai/scheduler.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "results_file.hpp"

namespace pocket::batch {

using openai::Json;
using openai::OrderedJson;
using openai::Refusal;

// The name of a model file in requests and results.
inline std::string model_name(const Arguments& a) {
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

class Batch {
 public:
  // Throws Failure.
  explicit Batch(const Arguments& a)
      : args_(a),
        model_(a.model, "", "", a.load()),
        name_(model_name(a)),
        workspace_(model_.model, a.session_options()),
        fingerprint_(settings_hash()),
        requests_(a.input, fingerprint_),
        scheduler_(workspace_, a.session_options(), limits()) {
    if (!workspace_.error.empty()) throw Failure{workspace_.error.rfind("kernel", 0) == 0 ? 2 : 1, workspace_.error};
    model_.set_chat_template(with_fixed_date(*model_.chat_template()));
    open_results();
  }

  // Throws Failure.
  void run() {
    Progress progress(args_.quiet, requests_.size(), figures_);
    do {
      stop_if_interrupted_with_hint();
      feed();
      progress.show();
    } while (scheduler_.step() || next_ < requests_.size());
    results_->finish();
    progress.erase();
    if (!args_.quiet) print_summary(progress.elapsed());
  }

 private:
  static constexpr size_t kMostHeld = 64 << 20;  // bytes of results that wait for an earlier one

  // A request in progress.
  struct Task {
    Task(size_t number, std::string id, openai::Request r, const Tokenizer& tokenizer)
        : line(number), custom_id(std::move(id)), request(std::move(r)), reply(request, tokenizer) {}
    size_t line;
    std::string custom_id;
    openai::Request request;
    openai::Completion reply;
    openai::ResponseInfo info;
  };

  // ---- Setup ----

  int context() const { return args_.context > 0 ? args_.context : model_.trained_context(); }

  // Everything but the request that a result depends on.
  uint64_t settings_hash() const {
    const bool f32 = keeps_f32(args_.session_options(), model_.model);
    const std::string settings =
        std::to_string(model_.model.checksum()) + " " + std::to_string(context()) + (f32 ? " f32 " : " q8 ") + name_;
    return hash_bytes(settings.data(), settings.size());
  }

  // Throws Failure if the memory does not suffice for a conversation that fills the context.
  openai::Scheduler::Limits limits() const {
    const SessionOptions options = args_.session_options();
    size_t fixed = 0, conversation = 0;
    for (const MemoryItem& item : memory_of(model_.model, options, context()))
      (std::string_view(item.name) == "keys and values" ? conversation : fixed) += item.bytes;
    const size_t limit = args_.memory.empty() ? cli::available_memory() / 4 * 3 + model_.model.bytes_per_token
                                              : parse_size("--memory", args_.memory);
    fixed += size_t(args_.parallel) * size_t(model_.vocab_size()) * sizeof(float) + kProgramBytes;
    conversation += conversation / size_t(context()) * kBlockKeys;  // the last block is allocated as a whole
    if (limit < fixed + conversation && !args_.memory.empty())
      throw Failure{1, "--memory: expected at least " + std::to_string((fixed + conversation) / 1000000 + 1) +
                           "MB for this model and one conversation of " + std::to_string(context()) +
                           " tokens, found " + args_.memory + "; --ctx sets a smaller context"};
    return {args_.parallel, std::max(conversation, limit - std::min(limit, fixed))};
  }

  void open_results() {
    if (args_.output == "-") {
      results_ = std::make_unique<ResultsStream>(!args_.unordered);
      return;
    }
    check_not_input({args_.output, args_.output + ".partial"}, {args_.model, args_.input});
    if (!args_.overwrite && access(args_.output.c_str(), F_OK) == 0)
      throw Failure{1, args_.output + ": exists; choose another name, or replace it with --overwrite"};
    auto file = std::make_unique<ResultsFile>(args_.output, requests_, !args_.unordered);
    figures_.resumed = figures_.done = file->loaded();
    figures_.failed = file->loaded_failures();
    results_ = std::move(file);
  }

  // ---- Requests ----

  // Submits the next requests, so many that the scheduler does not run out of them.
  void feed() {
    std::string text;
    while (next_ < requests_.size() && scheduler_.waiting() < size_t(args_.parallel) &&
           results_->held_bytes() < kMostHeld) {
      const size_t line = next_++;
      std::string custom_id;  // "": none that is valid
      try {
        if (!requests_.read(line, text))
          throw Refusal{"expected a line of at most " + std::to_string(RequestsFile::kLongestLine >> 20) +
                            " MiB, found a longer one",
                        "", "line_too_long"};
        openai::Request request = parse_line(text, custom_id);
        if (!results_->has(line)) submit(line, custom_id, std::move(request));
      } catch (const Refusal& refusal) {
        if (!results_->has(line)) finish(line, custom_id, refusal);
      }
    }
  }

  // Throws Refusal; custom_id is set if it is valid.
  openai::Request parse_line(std::string_view text, std::string& custom_id) {
    const Json json = openai::parse_json(text);
    if (!json.is_object()) openai::refuse("line", "an object", openai::type_of(json));
    const auto member = [&](const char* name, const char* expected) -> const Json& {
      const auto found = json.find(name);
      if (found == json.end()) openai::refuse(name, expected, "nothing");
      return *found;
    };
    const Json& id = member("custom_id", "a string");
    if (!id.is_string()) openai::refuse("custom_id", "a string", openai::type_of(id));
    const size_t bytes = id.get_ref<const std::string&>().size();
    if (bytes < 1 || bytes > 512) openai::refuse("custom_id", "1 to 512 bytes", std::to_string(bytes));
    custom_id = id.get<std::string>();
    if (!custom_ids_.insert(custom_id).second)
      throw Refusal{"custom_id: an earlier line has the same", "custom_id", "duplicate_custom_id"};
    if (member("method", "POST") != "POST")
      throw Refusal{"method: expected POST, found another", "method", "invalid_method"};
    const Json &url = member("url", "a string"), &body = member("body", "an object");
    const bool chat = url == "/v1/chat/completions";
    if (!chat && url != "/v1/completions")
      throw Refusal{"url: expected /v1/chat/completions or /v1/completions, found another", "url", "invalid_url"};
    const auto endpoint = chat ? openai::Endpoint::chat : openai::Endpoint::text;
    openai::Request request = openai::RequestParser::parse(endpoint, body);
    check_model(body);
    if (!request.has_seed) request.sampling.seed = hash_bytes(custom_id.data(), custom_id.size());
    return request;
  }

  // A request may leave out the model, but not name another.
  void check_model(const Json& body) const {
    const auto model = body.find("model");
    if (model == body.end() || model->is_null() || *model == name_ || *model == base_name(args_.model)) return;
    if (!model->is_string()) openai::refuse("model", "a string", openai::type_of(*model));
    throw Refusal{"model: expected " + name_ + ", found '" + model->get<std::string>().substr(0, 80) + "'", "model",
                  "model_not_found", 404};
  }

  // Throws Refusal.
  void submit(size_t line, const std::string& custom_id, openai::Request request) {
    auto task = std::make_shared<Task>(line, custom_id, std::move(request), model_.tokenizer());
    openai::Generation g;
    g.prompt = openai::prompt_tokens(model_, task->request, context());
    task->reply.start(g.prompt);
    task->info = {hex(requests_.id(line)), name_, "fp_" + hex(fingerprint_), g.prompt.size()};
    g.max_tokens = task->request.max_tokens;
    g.sampling = task->request.sampling;
    g.frequency_penalty = task->request.frequency_penalty;
    g.presence_penalty = task->request.presence_penalty;
    g.logit_bias = task->request.logit_bias;
    g.stop_ids = openai::stop_ids_of(model_, task->request);
    g.on_token = [this, task](int id, const float* logits) {
      figures_.new_tokens++;
      task->reply.push(id, logits, model_.vocab_size());
      return !task->reply.ended();
    };
    g.on_end = [this, task](openai::End end, const std::string& error) { finish(*task, end, error); };
    scheduler_.submit(std::move(g));
  }

  // ---- Results ----

  void finish(Task& task, openai::End end, const std::string& error) {
    if (end == openai::End::no_memory) throw Failure{1, error + "; a smaller --memory or --ctx needs less"};
    if (end == openai::End::failed) return finish(task.line, task.custom_id, Refusal{error, "", "server_error", 500});
    task.reply.finish(end == openai::End::stop_token);
    figures_.prompt_tokens += task.info.prompt_tokens;
    add_result(task.line, task.custom_id, 200, openai::response_body(task.info, task.reply), nullptr);
  }

  // As vllm run-batch does, an error is reported twice: for programs that look at the response, and for those that look
  // at the error.
  void finish(size_t line, const std::string& custom_id, const Refusal& refusal) {
    figures_.failed++;
    add_result(line, custom_id, refusal.status, openai::error_body(refusal),
               {{"code", refusal.code}, {"message", refusal.message}});
  }

  void add_result(size_t line, const std::string& custom_id, int status, OrderedJson body, OrderedJson error) {
    const std::string id = hex(requests_.id(line));
    figures_.done++;
    results_->add(line,
                  openai::to_line(
                      {{"id", kIdPrefix + id},
                       {"custom_id", custom_id},
                       {"response", {{"status_code", status}, {"request_id", "req_" + id}, {"body", std::move(body)}}},
                       {"error", std::move(error)}}));
  }

  void stop_if_interrupted_with_hint() const {
    if (!interrupted) return;
    const bool file = args_.output != "-";
    throw Failure{130, file ? args_.output + ".partial: interrupted; repeat the command to resume" : ""};
  }

  void print_summary(double elapsed) const {
    const Figures& f = figures_;
    std::fprintf(stderr, "%zu requests", f.done);
    if (f.resumed) std::fprintf(stderr, " (%zu of them by an earlier run)", f.resumed);
    std::fprintf(stderr, ", %zu failed; prompt %zu tokens, new %zu tokens in %s, %.1f tok/s; peak memory %.1f MB; %s, ",
                 f.failed, f.prompt_tokens, f.new_tokens, duration(elapsed).c_str(),
                 elapsed > 0 ? double(f.new_tokens) / elapsed : 0, double(cli::peak_memory()) / 1e6,
                 workspace_.kernel());
    std::fprintf(stderr, "%d thread%s\n", workspace_.threads(), workspace_.threads() == 1 ? "" : "s");
  }

  static constexpr size_t kProgramBytes = 16 << 20;  // the program, the tokenizer, and the requests in progress

  const Arguments& args_;
  cli::Llama model_;
  std::string name_;
  Workspace workspace_;
  uint64_t fingerprint_;
  RequestsFile requests_;
  openai::Scheduler scheduler_;
  std::unique_ptr<Results> results_;
  std::unordered_set<std::string> custom_ids_;
  Figures figures_;
  size_t next_ = 0;  // the line that is read next
};

}  // namespace pocket::batch

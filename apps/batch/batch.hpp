// batch.hpp: replies to a file of requests.
#pragma once

#include <set>

#include "options.hpp"
#include "progress.hpp"
#include "results_file.hpp"

namespace pocket::batch {

using openai::Json;
using openai::OrderedJson;
using openai::Refusal;

class Batch {
 public:
  // Throws Failure.
  explicit Batch(const Arguments& a)
      : args_(a),
        model_(a),
        fingerprint_(model_.settings_hash()),
        requests_(a.input, fingerprint_),
        scheduler_(model_.workspace, model_.session_options(), limits()) {
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

  // A text that begins as a running one, or as the last one, continues from its keys and values: system prompts are
  // processed once.
  openai::Scheduler::Limits limits() const {
    openai::Scheduler::Limits limits = model_.limits();
    limits.kept = 1;
    return limits;
  }

  void open_results() {
    if (args_.output == "-") {
      results_ = std::make_unique<ResultsStream>(!args_.unordered);
      return;
    }
    check_distinct({args_.output, args_.output + ".partial"}, inputs());
    if (!args_.overwrite && access(args_.output.c_str(), F_OK) == 0)
      throw Failure{1, args_.output + ": exists; choose another name, or replace it with --overwrite"};
    auto file = std::make_unique<ResultsFile>(args_.output, requests_, !args_.unordered);
    figures_.resumed = figures_.done = file->loaded();
    figures_.failed = file->loaded_failures();
    results_ = std::move(file);
  }

  // The files that are read.
  std::vector<std::string> inputs() const {
    std::vector<std::string> files = {args_.model, args_.input == "-" ? "/dev/stdin" : args_.input};
    for (std::string& file : adapter_files(args_.lora)) files.push_back(std::move(file));
    return files;
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
    model_.check_model(body);
    if (!request.has_seed) request.sampling.seed = hash_bytes(custom_id.data(), custom_id.size());
    return request;
  }

  // Throws Refusal.
  void submit(size_t line, const std::string& custom_id, openai::Request request) {
    const Tokenizer& tokenizer = model_.llama.tokenizer();
    auto task = std::make_shared<Task>(line, custom_id, std::move(request), tokenizer);
    openai::Generation g =
        model_.generation(task->request, openai::prompt_tokens(model_.llama, task->request, model_.context()));
    task->reply.start(g.prompt);
    task->info = {hex(requests_.id(line)), model_.name, "fp_" + hex(fingerprint_), g.prompt.size()};
    g.on_token = [this, task](int id, const float* logits) {
      figures_.new_tokens++;
      task->reply.push(id, logits, model_.llama.vocab_size());
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
    add_result(task.line, task.custom_id, 200, openai::response_body(task.info, {&task.reply}), nullptr);
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
                 elapsed > 0 ? double(f.new_tokens) / elapsed : 0, double(platform::peak_memory()) / 1e6,
                 model_.workspace.kernel());
    std::fprintf(stderr, "%d thread%s\n", model_.workspace.threads(), model_.workspace.threads() == 1 ? "" : "s");
  }

  const Arguments& args_;
  openai::ServedModel model_;
  uint64_t fingerprint_;
  RequestsFile requests_;
  openai::Scheduler scheduler_;
  std::unique_ptr<Results> results_;
  std::set<std::string> custom_ids_;
  Figures figures_;
  size_t next_ = 0;  // the line that is read next
};

}  // namespace pocket::batch

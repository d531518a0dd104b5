// generate.hpp: -m generate: continues a prompt or a saved session.
#pragma once

#include <optional>

#include "choices.hpp"
#include "explaining.hpp"
#include "guesses.hpp"
#include "report.hpp"
#include "session_file.hpp"
#include "stop_filter.hpp"

namespace pocket::cli {

// A text in progress: its tokens, its session, and the part of it that is not printed yet.
class TextWriter {
 public:
  // Throws Failure if the model of --draft cannot be used.
  TextWriter(Job& job, TextSession& session) : job_(job), session_(session) {}

  // Restores the saved text, if there is a file, and appends the prompt. Prints the prompt, but not an instruction.
  // Returns the tokens to process. Throws Failure.
  std::vector<int> start(SessionFile* file) {
    if (file) saved_ = file->restore(*session_.llama_session());
    // The saved tokens were printed when they were generated, except for an incomplete UTF-8 character at the end.
    for (const int id : saved_.ids) text_of(id);
    const std::vector<int> prompt = prompt_ids(job_, session_, !file);
    saved_.ids.insert(saved_.ids.end(), prompt.begin(), prompt.end());
    // The logits of the last position are not saved, so that its token is processed again.
    if (session_.position() == int(saved_.ids.size())) session_.rewind(session_.position() - 1);
    const std::vector<int> unprocessed(saved_.ids.begin() + session_.position(), saved_.ids.end());
    check_room(job_, session_, unprocessed.size());
    if (file) job_.out.write(filter_.push(std::exchange(saved_.held, "")));
    if (!job_.args.has_instruction())
      for (const int id : prompt) job_.out.write(text_of(id));
    return unprocessed;
  }

  // The options of the sampler. A resumed text continues with its own random numbers, unless -s gives another seed.
  SamplerOptions sampler_options(bool resumed) {
    SamplerOptions options = job_.sampler_options();
    if (resumed && (job_.args.seed.empty() || job_.seed == saved_.seed)) {
      job_.seed = saved_.seed;
      options.seed = saved_.random_state;
    }
    return options;
  }

  // Processes `ids`, then generates and prints the text. Returns false if that fails or is interrupted.
  bool write(ReportingSampler& sampler, const std::vector<int>& ids) {
    bool good = false;
    try {
      good = generate_tokens(sampler, ids, guesses_.propose(sampler));
    } catch (const Failure& f) {
      if (f.status != 130) throw;  // Ctrl-C while a long prompt is processed
    }
    guesses_.settle(job_.figures);
    job_.figures.end = reason_of_end(sampler);
    return good || sampler.stuck();
  }

  // Prints the text that was held back, at the end of a text without a stop text.
  void flush() {
    if (filter_.stopped) return;
    job_.out.write(filter_.push(printed_rest(stream_)));
    job_.out.write(filter_.flush());
  }

  // Saves the session; the text that is held back goes with it. Throws Failure.
  void save(const Sampler& sampler, OutputFile& file) {
    saved_.held = filter_.flush();
    saved_.seed = job_.seed;
    saved_.random_state = sampler.random_state();
    write_session_file(*session_.llama_session(), saved_, file);
  }

  const std::vector<int>& ids() const { return saved_.ids; }

 private:
  std::string text_of(int id) { return printed_text(job_.model->tokenizer(), stream_, id); }

  bool generate_tokens(ReportingSampler& sampler, const std::vector<int>& ids, const Propose& propose) {
    const double start = seconds();
    double first = 0;  // time of the first new token
    const size_t before = saved_.ids.size();
    const std::vector<int> last = process_prompt(job_, session_, sampler, ids);
    const int room = job_.model->longest_text(session_.context()) - int(before);
    const auto on_token = [&](int id) {
      if (saved_.ids.size() == before) first = seconds();
      saved_.ids.push_back(id);
      job_.out.write(filter_.push(text_of(id)));
      return !filter_.stopped && !interrupted && !sampler.must_end();
    };
    sampler.begin(job_.model->file().stop_ids, stream_);
    const bool good = generate(session_, sampler, last, std::min(room, job_.token_limit()), job_.model->file().stop_ids,
                               on_token, propose);
    job_.figures.add(ids.size(), start, saved_.ids.size() - before, first);
    return good;
  }

  const char* reason_of_end(const ReportingSampler& sampler) const {
    if (filter_.stopped) return "stop text";
    if (sampler.must_end() || sampler.stuck()) return "grammar";
    if (int(job_.figures.new_tokens) == job_.token_limit()) return "tokens";
    return int(saved_.ids.size()) >= job_.model->longest_text(session_.context()) ? "context" : "stop token";
  }

  Job& job_;
  TextSession& session_;
  SavedText saved_;
  Guesses guesses_{job_, saved_.ids};
  Tokenizer::Stream stream_{job_.model->tokenizer()};
  StopFilter filter_{job_.args.stop};
};

// Executes -m generate. Throws Failure.
inline void generate_text(Job& job) {
  const Arguments& a = job.args;
  add_stop_ids(job);
  const std::shared_ptr<TokenGrammar> grammar = open_grammar(job);  // before the prompt is printed
  OutputFile save_to;
  if (!a.save.empty()) open_output(save_to, a.save);  // first, so that a wrong path fails before the text
  SessionOptions options = session_options(a);
  std::optional<SessionFile> file;
  if (!a.resume.empty()) file.emplace(a.resume, job.model->file(), job.model->adapter()).fill(options);
  ActiveSession session(*job.model, options);
  start_explaining(job, *session);
  TextWriter text(job, *session);
  const std::vector<int> unprocessed = text.start(file ? &*file : nullptr);
  ReportingSampler sampler(job, text.sampler_options(file.has_value()), grammar);
  for (int i = 0; i < session->position(); i++) sampler.remember(text.ids()[size_t(i)]);

  const bool good = text.write(sampler, unprocessed);
  if (a.save.empty()) text.flush();
  job.out.end_text();
  sampler.print_held_lines();
  if (!a.save.empty() && (good || interrupted)) text.save(sampler, save_to);
  if (good || interrupted) finish_explaining(job, text.ids());
  if (!good) throw_failure(*session);
  stop_if_interrupted();
  print_figures(job, *session);
  const std::string incomplete = sampler.incomplete(job.figures.end);
  if (!incomplete.empty()) throw Failure{1, incomplete};
}

}  // namespace pocket::cli

// explaining.hpp: --explain: a page about what happens inside the model while it writes this text.
#pragma once

#include "../explain/explain.hpp"
#include "job.hpp"
#include "token_text.hpp"

namespace pocket::cli {

// Starts to watch the session, with --explain. Throws Failure if the file cannot be written.
inline void start_explaining(Job& job, TextSession& session) {
  if (job.args.explain.empty()) return;
  job.explanation = std::make_shared<explain::Explanation>();
  if (!job.explanation->open(job.args.explain)) {
    stop_if_interrupted();
    throw Failure{1, job.explanation->error()};
  }
  job.explanation->watch(*session.llama_session());
}

// Writes the page. ids: of the session's context, maybe with one more. Throws Failure.
inline void finish_explaining(Job& job, const std::vector<int>& ids) {
  if (!job.explanation) return;
  if (ids.empty() || job.explanation->observed() == 0) {
    job.out.start_stderr_line();
    return print_message("run", job.args.explain + ": not written, since there is no text to explain");
  }
  const auto text_of = std::make_shared<TokenText>(job.model->tokenizer());
  const explain::Text text = {
      job.args.model,        job.args.mode,          ids,
      job.sampler_options(), job.args.constrained(), [text_of](int id) { return (*text_of)(id); }};
  const double start = seconds();
  bool shown = false;
  const auto progress = [&](const char* what, size_t done, size_t total) {
    if (!platform::is_terminal(2) || seconds() - start < 2) return;
    job.out.start_stderr_line();
    std::fprintf(stderr, "\r%s: %s, %zu of %zu ", job.args.explain.c_str(), what, done, total);
    shown = true;
  };
  const bool written = job.explanation->finish(text, job.model->tokenizer(), progress);
  if (shown) std::fprintf(stderr, "\r\033[K");
  if (!written) throw Failure{1, job.explanation->error()};
  const size_t explained = job.explanation->explained();
  if (ids.size() > explained + 1) {
    job.out.start_stderr_line();
    print_message("run", job.args.explain + ": explains the first " + std::to_string(explained) + " of " +
                             std::to_string(ids.size()) + " tokens");
  }
  job.explanation.reset();
}

}  // namespace pocket::cli

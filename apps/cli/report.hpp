// report.hpp: prints the figures on stderr: as one line, or as JSON (--json).
#pragma once

#include "../../export/json_writer.hpp"
#include "job.hpp"

namespace pocket::cli {

// Weights read per second while generating, in GB.
inline double weights_rate(const Job& job) {
  return job.figures.pass_rate() * double(job.model->file().bytes_per_token) / 1e9;
}

// The figures as a JSON object. Its fields are a contract.
inline std::string json_figures(const Job& job, const TextSession& session) {
  const Figures& f = job.figures;
  std::vector<std::pair<std::string_view, std::string>> fields;
  const auto add = [&fields](std::string_view name, std::string value) { fields.push_back({name, std::move(value)}); };
  add("model", json(job.args.model));
  add("kernel", json(session.kernel()));
  add("threads", std::to_string(session.threads()));
  add("temperature", json(job.args.temperature));
  add("seed", job.args.temperature > 0 ? std::to_string(job.seed) : "null");
  add("prompt_tokens", std::to_string(f.prompt_tokens));
  add("prompt_seconds", json(f.prompt_seconds));
  add("prompt_tokens_s", json(f.prompt_rate()));
  add("new_tokens", std::to_string(f.new_tokens));
  add("new_seconds", json(f.new_seconds));
  add("new_tokens_s", json(f.new_rate()));
  add("weights_gb_s", json(weights_rate(job)));
  add("peak_memory_bytes", std::to_string(platform::peak_memory()));
  add("position", std::to_string(session.position()));
  add("context", std::to_string(session.context()));
  if (f.end) add("end", json(f.end));
  if (job.args.guesses()) {
    add("guesses", std::to_string(f.guesses));
    add("guesses_right", std::to_string(f.right_guesses));
  }
  if (job.args.top > 0) add("choices", json_array(f.choices));
  return json_object(fields);
}

inline void print_figures(Job& job, const TextSession& session) {
  const Figures& f = job.figures;
  const Unit unit = job.model->unit();
  if (job.args.quiet && !job.args.json) return;
  job.out.start_stderr_line();
  if (job.args.json) {
    std::fprintf(stderr, "%s\n", json_figures(job, session).c_str());
    return;
  }
  std::fprintf(stderr, "prompt %zu %s, %.1f %s; new %zu %s, %.1f %s, %.1f GB/s; peak memory %.1f MB; %s, %d thread%s",
               f.prompt_tokens, unit.plural, f.prompt_rate(), unit.per_second, f.new_tokens, unit.plural, f.new_rate(),
               unit.per_second, weights_rate(job), double(platform::peak_memory()) / 1e6, session.kernel(),
               session.threads(), session.threads() == 1 ? "" : "s");
  if (job.args.guesses()) std::fprintf(stderr, "; %zu of %zu guesses right", f.right_guesses, f.guesses);
  if (job.args.temperature > 0) std::fprintf(stderr, "; seed %llu", static_cast<unsigned long long>(job.seed));
  std::fprintf(stderr, "\n");
}

}  // namespace pocket::cli

// metrics.hpp: the figures of the server, in the text format of Prometheus.
#pragma once

#include <array>

#include "worker.hpp"

namespace pocket::server {

// Counts requests by the first digit of their status.
class RequestCounter {
 public:
  void add(int status) { counts_[size_t(std::max(0, std::min(status / 100, 5)))]++; }
  uint64_t operator[](size_t hundreds) const { return counts_[hundreds]; }

 private:
  std::array<std::atomic<uint64_t>, 6> counts_{};
};

inline std::string metrics_text(const WorkerFigures& f, const RequestCounter& requests, int connections,
                                size_t weights) {
  std::string out;
  const auto add = [&](const char* name, const char* type, const char* help, double value) {
    char line[400];
    std::snprintf(line, sizeof line, "# HELP pocketllama_%s %s\n# TYPE pocketllama_%s %s\npocketllama_%s %.15g\n", name,
                  help, name, type, name, value);
    out += line;
  };
  out += "# HELP pocketllama_requests_total HTTP requests by status.\n# TYPE pocketllama_requests_total counter\n";
  for (size_t i = 2; i <= 5; i++)
    out += "pocketllama_requests_total{status=\"" + std::to_string(i) + "xx\"} " + std::to_string(requests[i]) + "\n";
  add("prompt_tokens_total", "counter", "Tokens of prompts.", double(f.prompt_tokens));
  add("reused_tokens_total", "counter", "Tokens of prompts whose keys and values were known.", double(f.reused_tokens));
  add("generated_tokens_total", "counter", "Generated tokens.", double(f.new_tokens));
  add("passes_total", "counter", "Passes through the model.", double(f.passes));
  add("cancelled_total", "counter", "Replies that were cancelled.", double(f.cancelled));
  add("running", "gauge", "Replies that are generated.", double(f.running));
  add("waiting", "gauge", "Replies that wait for their turn.", double(f.waiting));
  add("kept_sessions", "gauge", "Ended conversations whose keys and values are kept.", double(f.kept));
  add("connections", "gauge", "Open connections.", connections);
  add("tokens_per_second", "gauge", "Generated tokens per second, in the last seconds.", f.tokens_per_second);
  add("kv_reserved_bytes", "gauge", "KV memory reserved for running replies.", double(f.reserved_bytes));
  add("kv_kept_bytes", "gauge", "KV memory of kept conversations.", double(f.kept_bytes));
  add("kv_limit_bytes", "gauge", "Limit of the KV memory.", double(f.limit_bytes));
  add("weights_bytes", "gauge", "Weights that are read for a token.", double(weights));
  add("resident_bytes", "gauge", "Resident memory of the process.", double(platform::resident_memory()));
  return out;
}

}  // namespace pocket::server

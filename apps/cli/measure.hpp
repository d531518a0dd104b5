// measure.hpp: the actions in place of a text: --info, --selftest, --perplexity, --encode and --logits.
#pragma once

#include "job.hpp"

namespace pocket::cli {

// --perplexity. Throws Failure.
inline void print_perplexity(Job& job) {
  const LanguageModel& model = *job.model;
  const std::string& file = job.args.perplexity;
  const Windows text(model.encode(read_all(file, kLongestMeasuredText), true), model.trained_context(), file,
                     model.perplexity_window());
  check_forbidden(model, text.ids, file);
  SessionOptions options = session_options(job.args);
  options.context = int(text.size);
  ActiveSession session(model, options);
  Perplexity total;
  for (size_t w = 0; w < text.count; w++) {
    const int* ids = text.window(w);
    session->rewind(0);
    const bool good = session->forward(ids, text.size, [&](size_t i, const float* logits) {
      if (text.counts(i)) total.add(surprise(logits, model.vocab_size(), ids[i + 1]));
      return true;
    });
    if (!good && w > 0 && platform::is_terminal(2)) std::fprintf(stderr, "\r\033[K");
    if (!good) throw_failure(*session);
    if (platform::is_terminal(2)) std::fprintf(stderr, "\rwindow %zu of %zu: %.4f ", w + 1, text.count, total.value());
  }
  if (platform::is_terminal(2)) std::fprintf(stderr, "\r\033[K");
  job.out.write(model.perplexity_line(total, text.ids.size()));
}

// --selftest: the checksum of the tensors, and the logits of every kernel set, or of that of --kernel. Throws Failure.
inline void self_test(Job& job) {
  const Arguments& a = job.args;
  ModelFile& file = job.model->file();
  if (!file.verify_tensors()) throw Failure{1, a.model + ": " + file.error};
  const std::vector<int>& ids = file.self_test_ids;
  if (ids.empty()) throw Failure{1, a.model + ": tensor checksum: ok, but the file has no self-test"};
  for (const std::string& name : a.kernel.empty() ? kernel_names() : std::vector<std::string>{a.kernel}) {
    SessionOptions options = session_options(a);
    options.kernel = name.c_str();
    options.kv = KvType::automatic;
    options.context = int(ids.size());
    ActiveSession session(*job.model, options);
    const float* logits = session->forward(ids.data(), ids.size());
    if (!logits) throw_failure(*session);
    if (hash_logits(logits, job.model->vocab_size()) != file.self_test_hash)
      throw Failure{1, "kernel " + name + ": logits do not match the self-test hash; please report this CPU"};
    job.out.write("kernel " + name + ": logits match the self-test hash\n");
  }
  job.out.write("tensor checksum: ok\n");
}

// The memory of a session after a short text and with a full context, for --info.
inline void print_memory(Job& job) {
  const LanguageModel& model = *job.model;
  const SessionOptions options = session_options(job.args);
  const int full = options.context > 0 ? options.context : model.trained_context(), some = std::min(128, full);
  std::vector<MemoryItem> few = model.memory_of(options, some), all = model.memory_of(options, full);
  uint64_t sum_few = platform::resident_memory();
  if (job.args.no_mmap) {  // the whole file, embedding table included, is in memory already
    few[0].bytes = all[0].bytes = job.model->file().file_bytes;
    sum_few -= std::min(sum_few, few[0].bytes);
  }
  uint64_t sum_all = sum_few;
  char line[120];
  const auto row = [&](const char* name, uint64_t x, uint64_t y) {
    std::snprintf(line, sizeof line, "  %-24s %10.1f %10.1f\n", name, double(x) / 1e6, double(y) / 1e6);
    job.out.write(line);
  };
  const char* unit = model.unit().plural;
  std::snprintf(line, sizeof line, "memory in MB, after    %5d %6s %5d %6s\n", some, unit, full, unit);
  job.out.write(line);
  row("program and tokenizer", sum_few, sum_all);
  for (size_t i = 0; i < few.size(); i++) {
    row(few[i].name, few[i].bytes, all[i].bytes);
    sum_few += few[i].bytes;
    sum_all += all[i].bytes;
  }
  row("sum", sum_few, sum_all);
}

// --info.
inline void print_info(Job& job) {
  job.out.write(job.model->description());
  const std::string provenance = without_controls(std::string(job.model->file().provenance()));
  job.out.write(provenance + (provenance.empty() || provenance.back() == '\n' ? "" : "\n"));
  print_memory(job);
}

// --encode.
inline void print_ids(Job& job) {
  std::string line;
  for (const int id : job.model->encode(job.args.encode, true)) line += (line.empty() ? "" : ",") + std::to_string(id);
  job.out.write(line + "\n");
}

// --logits. Throws Failure.
inline void write_logits(Job& job) {
  ActiveSession session(*job.model, session_options(job.args));
  const std::vector<int> ids = prompt_ids(job, *session);
  check_room(job, *session, ids.size());
  OutputFile file;
  open_output(file, job.args.logits);
  const size_t row = size_t(job.model->vocab_size()) * sizeof(float), batch = size_t(job.args.batch);
  for (size_t i = 0; i < ids.size() && !file.failed(); i += batch) {
    const auto write = [&](size_t, const float* logits) { return file.write(logits, row); };
    if (!session->forward(ids.data() + i, std::min(batch, ids.size() - i), write)) throw_failure(*session);
  }
  if (!file.finish()) throw Failure{1, file.error()};
}

}  // namespace pocket::cli

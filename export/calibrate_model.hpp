// calibrate_model.hpp: `convert --calibrate`: reads or generates the calibration text, runs the calibration with a
// progress bar, and resumes an interrupted one.
#pragma once

#include <cstdio>
#include <string>
#include <vector>

#include "calibrate.hpp"
#include "calibration_text.hpp"
#include "progress.hpp"
#include "report.hpp"

namespace pocket {

/// The options of a calibration on the command line.
struct CalibrateArguments {
  std::string text;    // a file, or "self": text that the model generates
  std::string steps;   // the last step to run, "" for all; see stop_after()
  std::string output;  // the model file; temporary files are created beside it
};

namespace calibrate_detail {

/// The calibration text as windows of token ids. Throws Failure.
inline Windows calibration_windows(const CalibrateArguments& a, const ModelParts& parts, const ReadRows& read) {
  Windows windows;
  std::string error;
  Tokenizer tokenizer;
  if (!tokenizer.load(parts.tokenizer)) throw Failure{1, tokenizer.error};
  if (a.text != "self") {
    if (!read_text(a.text, parts.config, tokenizer, windows, error)) throw Failure{1, error};
    return windows;
  }
  ModelParts temporary = parts;
  temporary.type = Type::q8;
  Temporary model;
  const bool created = model.create_beside(a.output, [](const char* name) {
    const int file = platform::create_file(name, true);
    return file >= 0 && platform::close(file) == 0;
  });
  if (!created) throw Failure{1, a.output + ": " + std::strerror(errno)};
  write_with_progress(model.name(), temporary, read);
  const std::vector<int> bos = ids_of(tokenizer, "", true);
  ProgressBar bar;
  const bool done = generate_text(
      model.name(), bos.empty() ? -1 : bos[0], parts.threads,
      [&](double share) { return bar(share, "generating text"); }, windows, error);
  if (interrupted) throw Failure{130, "interrupted; nothing was written"};
  if (!done) throw Failure{1, error};
  return windows;
}

/// A hash of everything the result of a calibration depends on; of the weights, one row of each tensor.
inline uint64_t calibration_key(const CalibrationOptions& o, const ModelParts& parts, const Windows& windows,
                                const ReadRows& read) {
  Hash64 hash;
  const auto add = [&](auto value) { hash.update(&value, sizeof value); };
  const Config& c = parts.config;
  for (int v : {c.n_heads, c.n_kv_heads, c.head_dim, int(c.rope_scaling), c.rope_original_len, int(o.head)}) add(v);
  for (int l = 0; l < c.n_layers; l++) add(c.has_rope(l));
  for (float v : {c.norm_eps, c.rope_theta, c.rope_factor, c.rope_low_freq, c.rope_high_freq}) add(v);
  for (double v : {o.shrink, o.shrink_few, o.damping, o.correction, double(o.lag)}) add(v);
  for (const auto& w : windows) hash.update(w.data(), w.size() * sizeof(int));
  for (const TensorSpec& spec : tensor_specs(c)) {
    std::vector<float> row(size_t(spec.cols));
    std::string error;
    if (!read(spec, spec.rows / 2, 1, row.data(), error)) throw Failure{1, error};
    hash.update(row.data(), row.size() * sizeof(float));
  }
  return hash.digest();
}

/// Prints the expected time, memory and disk space. disk: bytes.
inline void announce(Calibration& calibration, const ModelParts& parts, size_t tokens, double disk) {
  const size_t enough = enough_tokens(parts.config);
  if (tokens < enough)
    std::fprintf(stderr,
                 "convert: the calibration text has %zu tokens; with %zu (about %zu kB) or more the model is better\n",
                 tokens, enough, enough * 4 / 1000 + 1);
  const double work = calibration.work(), brief = 1e10;  // takes less time than measuring the speed
  const double seconds = work < brief ? 0 : work / calibration.speed();
  std::fprintf(stderr,
               "convert: calibrating on %zu tokens: about %s, %.0f MB of memory, %.0f MB of temporary disk space\n",
               tokens, duration(seconds).c_str(), calibration.memory_bytes() / 1e6, disk / 1e6);
}

/// Calls calibration.quantize() with a progress bar.
inline bool quantize(Calibration& calibration, CalibrationFile& file) {
  ProgressBar bar;
  std::string task = "calibrating";
  return calibration.quantize(file, [&](double done, double total, const EncodedTensor* tensor) {
    char error[32] = "";
    if (tensor) std::snprintf(error, sizeof error, ", error %.1f%%", 100 * tensor->error);
    if (tensor) task = tensor->spec.name + error;
    return bar(done / total, task);
  });
}

/// Runs the calibration into `file`. Throws Failure; then `file` stays if it can be resumed, except after an error of
/// the input, which would be the same again.
inline void run(Calibration& calibration, CalibrationFile& file, int n_layers) {
  bool of_input = false;
  try {
    if (quantize(calibration, file)) return;
    of_input = calibration.error != file.error;
  } catch (const std::bad_alloc&) {
    calibration.error = "out of memory";
  }
  if (interrupted && file.resumable())
    throw Failure{130, "interrupted after layer " + std::to_string(file.layers()) + " of " + std::to_string(n_layers)};
  if (!file.resumable() || of_input) file.remove();
  if (interrupted) throw Failure{130, "interrupted; nothing was written"};
  throw Failure{1, calibration.error};
}

}  // namespace calibrate_detail

/// The name of the file of a calibration.
inline std::string calibration_name(const std::string& output) { return output + ".calibrating"; }

/// Quantizes the matrices for a text into `file`, which must outlive `parts`: parts.ready refers to it. Returns the
/// errors of the matrices. Throws Failure.
inline std::vector<ReportRow> calibrate_model(const CalibrateArguments& a, ModelParts& parts, const ReadRows& read,
                                              CalibrationFile& file) {
  using namespace calibrate_detail;
  CalibrationOptions options;
  options.head = parts.head_q8 ? Type::q8 : Type::q4;
  options.threads = parts.threads;
  if (!a.steps.empty()) stop_after(a.steps, options);
  const Windows windows = calibration_windows(a, parts, read);
  Calibration calibration(parts.config, windows, read, options);
  const size_t tokens = count_tokens(windows), stream_bytes = 8 * Calibration::stream_floats(parts.config, tokens);
  std::vector<TensorSpec> matrices;
  double disk = 2.0 * double(stream_bytes);
  for (const TensorSpec& spec : tensor_specs(parts.config)) {
    if (spec.layout != Layout::panels) continue;
    matrices.push_back(spec);
    disk += double(tensor_bytes(spec, Type::q4));
  }
  if (!file.open(calibration_name(a.output), calibration_key(options, parts, windows, read), stream_bytes, matrices))
    throw Failure{1, file.error};
  announce(calibration, parts, tokens, disk);
  if (file.layers() > 0)
    std::fprintf(stderr, "convert: resuming after layer %d of %d\n", file.layers(), parts.config.n_layers);
  run(calibration, file, parts.config.n_layers);
  std::vector<ReportRow> rows;
  for (size_t i = 0; i < matrices.size(); i++) {
    const CalibrationFile::Record& r = file.records()[i];
    parts.ready[matrices[i].name] = file.ready(r);
    rows.push_back(
        {matrices[i].name, Type(r.entry.type), matrices[i].rows, matrices[i].cols, r.entry.bytes, r.error, r.drift});
  }
  return rows;
}

}  // namespace pocket

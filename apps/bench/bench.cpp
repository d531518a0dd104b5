// bench.cpp: measures a model on this machine: its speed and memory, compared with the limits of the machine, or the
// divergence of its predictions from those of another model. See --help and README.md.

#include "../../export/engine.hpp"

#include "divergence.hpp"
#include "draft_speed.hpp"
#include "parallel.hpp"

namespace {

using namespace pocket;
using namespace pocket::bench;

struct Arguments {
  std::string model, threads, kernels, parallel, draft, reference, file;
  bool quick = false, json = false, worker = false, help = false;
  std::vector<int> thread_counts;         // parsed from `threads`
  std::vector<std::string> kernel_names;  // parsed from `kernels`
  std::vector<int> conversations;         // parsed from `parallel`
};

const Option<Arguments> kOptions[] = {
    {"", "", "", "Speed and memory"},
    {"", "--threads", "LIST", "numbers of threads, for example 1,2 [1 and one per CPU]", &Arguments::threads},
    {"", "--kernel", "LIST", "kernel sets; run --kernels lists them [the best]", &Arguments::kernels},
    {"", "--quick", "", "measure in a fraction of the time, less accurately", &Arguments::quick},
    {"", "--parallel", "LIST", "conversations in one pass, for example 1,2,4,8,16,32, compared with one",
     &Arguments::parallel},
    {"", "--draft", "FILE", "texts with the guesses of this model, as of ./run --draft, compared with none",
     &Arguments::draft},
    {"", "", "", "Quality"},
    {"", "--kl", "REFERENCE", "compare with this model, which has the same vocabulary, on the text of -f",
     &Arguments::reference},
    {"-f", "--file", "FILE", "a text; - for standard input", &Arguments::file},
    {"", "", "", "For scripts"},
    {"", "--json", "", "print one JSON object on stdout instead of tables", &Arguments::json},
    {"", "--worker", "",
     "answer commands on stdin, one per line: prompt N, generate N, parallel N (seconds), peak, expected N (bytes)",
     &Arguments::worker},
    {"-h", "--help", "", "print this help", &Arguments::help},
};

void print_help() {
  std::printf(
      "bench: measures the speed, memory and quality of a model on this machine\n\n"
      "  bench model.bin                            speed and memory; takes a minute or two\n"
      "  bench model.bin --threads 2 --kernel avx2  of one kernel set, with two threads\n"
      "  bench model.bin --parallel 1,2,4,8,16,32   of several conversations in one pass\n"
      "  bench model.bin --draft small.bin          of texts with and without the guesses of a draft model\n"
      "  bench q4.bin --kl f32.bin -f text.txt      KL divergence, perplexity and top tokens of q4 compared with f32\n"
      "  bench model.bin --json > today.json        to compare measurements later\n\n"
      "  export/convert --random tinyllama-1.1b -o tl.bin     writes a model of a common size to measure\n\n"
      "Generating a token reads all weights once, so its speed is compared with a plain loop that reads memory (in\n"
      "pages of 2 MiB, if the system provides them). Prompts are limited by arithmetic, so they are compared with the\n"
      "int8 multiply-adds of the kernel set's instruction with its operands in registers. Both limits are measured in\n"
      "turns with the model, because the speed of a machine drifts. 1 TOP/s is 10^12 operations per second (a\n"
      "multiply-add is two); 1 GB is 10^9 bytes.\n");
  print_options(kOptions);
}

std::vector<std::string> checked_kernels(const std::string& list) {
  const std::vector<std::string> known = kernel_names();
  if (list.empty()) return {known[0]};
  std::string all;
  for (const std::string& name : known) all += (all.empty() ? "" : ", ") + name;
  for (const std::string& name : split(list))
    if (!find_kernels(name.c_str()))
      throw Failure{2, "--kernel: '" + name + "' is not supported by this CPU; available: " + all};
  return split(list);
}

std::vector<int> checked_threads(const std::string& list) {
  const int cpus = std::max(1, int(std::thread::hardware_concurrency()));
  if (list.empty()) return cpus == 1 ? std::vector<int>{1} : std::vector<int>{1, cpus};
  std::vector<int> threads;
  for (const std::string& n : split(list)) threads.push_back(int(number("--threads", n, 1, 256, true)));
  return threads;
}

std::vector<int> checked_conversations(const std::string& list) {
  std::vector<int> all;
  if (list.empty()) return all;
  for (const std::string& n : split(list)) all.push_back(int(number("--parallel", n, 1, kChunk, true)));
  return all;
}

/// Throws Failure for options that exclude each other.
void check_mode(const Arguments& a) {
  const bool quality = !a.reference.empty(),
             one = a.threads.find(',') == std::string::npos && a.kernel_names.size() == 1;
  const int modes = quality + !a.parallel.empty() + !a.draft.empty() + a.worker;
  if (a.reference.empty() != a.file.empty())
    throw Failure{2,
                  a.file.empty() ? "--kl requires a text: -f FILE" : "-f requires a model to compare: --kl REFERENCE"};
  if (a.quick && (quality || a.worker)) throw Failure{2, "--kl and --worker cannot be combined with --quick"};
  if (modes > 1) throw Failure{2, "--kl, --parallel, --draft and --worker cannot be combined"};
  if (modes > 0 && !one)
    throw Failure{2, "--threads and --kernel: --kl, --parallel, --draft and --worker accept only one of each"};
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  parse_options(argc, argv, kOptions, "compare two with --kl", a);
  if (a.help) return a;
  if (a.model.empty())
    throw Failure{2, "no model given; try: export/convert --random tinyllama-1.1b -o tl.bin, then: bench tl.bin"};
  a.thread_counts = checked_threads(a.threads);
  a.kernel_names = checked_kernels(a.kernels);
  a.conversations = checked_conversations(a.parallel);
  check_mode(a);
  return a;
}

// ---- Speed ----

/// All results for a model.
struct SpeedReport {
  const std::string& file;
  const Model& model;
  LoadTime load;
  std::vector<PeakMemory> memory;
  MachineSpeed machine;
  std::vector<ModelSpeed> speeds;
};

std::string json_of(const MachineSpeed& m) {
  std::vector<std::string> read, int8;
  for (const auto& r : m.read) read.push_back(json_object({{"threads", json(r.threads)}, {"gb_s", json(r.gb_s)}}));
  for (const auto& r : m.int8)
    int8.push_back(json_object({{"kernel", json(r.kernel)}, {"threads", json(r.threads)}, {"top_s", json(r.top_s)}}));
  return json_object({{"cpu", json(cpu_name())},
                      {"cpus", json(std::thread::hardware_concurrency())},
                      {"read", json_array(read)},
                      {"int8", json_array(int8)}});
}

std::string json_of(const ModelSpeed& s) {
  std::vector<std::string> prompts, generate;
  for (const PromptSpeed& p : s.prompts)
    prompts.push_back(json_object({{"tokens", json(p.tokens)},
                                   {"tok_s", json(p.tok_s)},
                                   {"top_s", json(p.top_s)},
                                   {"int8_share", json(p.int8_share)}}));
  for (const GenerateSpeed& g : s.generate)
    generate.push_back(json_object({{"depth", json(g.depth)},
                                    {"tok_s", json(g.tok_s)},
                                    {"gb_s", json(g.gb_s)},
                                    {"read_share", json(g.read_share)}}));
  return json_object({{"kernel", json(s.kernel)},
                      {"threads", json(s.threads)},
                      {"read_gb_s", json(s.read_gb_s)},
                      {"int8_top_s", json(s.int8_top_s)},
                      {"prompt", json_array(prompts)},
                      {"generate", json_array(generate)},
                      {"depth_share", json(s.depth_ratio)}});
}

void print_json(const SpeedReport& r) {
  const auto [layers, output] = multiplied_weights(r.model);
  std::vector<std::string> speeds, memory;
  for (const ModelSpeed& s : r.speeds) speeds.push_back(json_of(s));
  for (const PeakMemory& m : r.memory)
    memory.push_back(
        json_object({{"tokens", json(m.tokens)}, {"peak_bytes", json(m.peak)}, {"expected_bytes", json(m.expected)}}));
  const std::string model = json_object({{"file", json(r.file)},
                                         {"file_bytes", json(double(r.model.file_bytes))},
                                         {"type", json(type_name(r.model.layers[0].wq.type))},
                                         {"weights", json(layers + output)},
                                         {"bytes_per_token", json(double(r.model.bytes_per_token))},
                                         {"context", json(context_of(r.model))}});
  const std::string load = json_object({{"kernel", json(r.load.kernel)},
                                        {"threads", json(r.load.threads)},
                                        {"open_ms", json(r.load.open_ms)},
                                        {"first_token_ms", json(r.load.first_token_ms)}});
  std::printf("%s\n", json_object({{"model", model},
                                   {"machine", json_of(r.machine)},
                                   {"load", load},
                                   {"speed", json_array(speeds)},
                                   {"memory", json_array(memory)}})
                          .c_str());
}

/// Formats a ratio in percent; "" if it was not measured.
std::string percent(double share, const char* of) {
  char text[80];
  std::snprintf(text, sizeof text, "  %5.1f%% of %s", share * 100, of);
  return std::isfinite(share) ? text : "";
}

void print_machine(const MachineSpeed& m) {
  std::printf("\n%-34s", "machine");
  for (const auto& read : m.read) std::printf("  %13s", on_threads(read.threads).c_str());
  std::printf("\n  %-32s", "reading memory");
  for (const auto& read : m.read) std::printf("  %8.1f GB/s", read.gb_s);
  std::string row;
  for (const auto& rate : m.int8) {
    if (rate.kernel != row) std::printf("\n  int8, %-26s", rate.kernel.c_str());
    row = rate.kernel;
    std::printf("  %7.2f TOP/s", rate.top_s);
  }
  std::printf("\n");
}

void print_speed(const ModelSpeed& s) {
  std::printf("\n%s, %s; reading memory %.1f GB/s", s.kernel.c_str(), on_threads(s.threads).c_str(), s.read_gb_s);
  if (std::isfinite(s.int8_top_s)) std::printf(", int8 %.2f TOP/s", s.int8_top_s);
  std::printf("\n");
  for (const PromptSpeed& p : s.prompts)
    std::printf("  prompt of %-22d  %8.1f tok/s  %7.3f TOP/s%s\n", p.tokens, p.tok_s, p.top_s,
                percent(p.int8_share, "int8").c_str());
  for (const GenerateSpeed& g : s.generate)
    std::printf("  generating at depth %-12d  %8.1f tok/s  %7.2f GB/s %s%s\n", g.depth, g.tok_s, g.gb_s,
                percent(g.read_share, "reading").c_str(), g.depth ? percent(s.depth_ratio, "depth 0").c_str() : "");
}

void print_table(const SpeedReport& r) {
  const auto [layers, output] = multiplied_weights(r.model);
  std::printf("%s: %.1f M weights in %s, %.1f MB read per token\n", one_line(r.file).c_str(), (layers + output) / 1e6,
              type_name(r.model.layers[0].wq.type), double(r.model.bytes_per_token) / 1e6);
  const std::string cpu = one_line(cpu_name());
  std::printf("%s%s%u CPUs\n", cpu.c_str(), cpu.empty() ? "" : ", ", std::thread::hardware_concurrency());
  print_machine(r.machine);
  for (const ModelSpeed& s : r.speeds) print_speed(s);
  std::printf("\n%s, %s\n", r.load.kernel.c_str(), on_threads(r.load.threads).c_str());
  std::printf("  %-32s  %8.2f ms\n", "opening the model", r.load.open_ms);
  std::printf("  %-32s  %8.1f ms\n", "process start to first token", r.load.first_token_ms);
  for (const PeakMemory& m : r.memory)
    std::printf("  peak memory, %5d tokens          %8.1f MB = %.1f MiB, expected %.1f MB\n", m.tokens, m.peak / 1e6,
                m.peak / (1 << 20), m.expected / 1e6);
}

void measure_speed(const Arguments& a) {
  Model model;
  if (!model.open(a.model.c_str())) throw Failure{1, model.error};
  SpeedReport report = {a.model, model, {}, {}, {}, {}};
  {
    SpeedTest test(a.model, model, a.thread_counts, a.kernel_names, a.quick);
    report.load = test.load();
    report.memory = test.memory();
    report.machine = test.machine();
    report.speeds = test.speeds();
  }
  if (a.json)
    print_json(report);
  else
    print_table(report);
}

// ---- Quality ----

void print_json(const Arguments& a, const Divergence& d) {
  const auto perplexity = [](const cli::Perplexity& p) {
    return json_object({{"value", json(p.value())}, {"error", json(p.error())}});
  };
  const std::string kl =
      json_object({{"mean", json(d.mean())}, {"median", json(median(d.kl))}, {"p99", json(quantile(d.kl, 0.99))}});
  std::printf("%s\n", json_object({{"model", json(a.model)},
                                   {"reference", json(a.reference)},
                                   {"tokens", json(double(d.tokens))},
                                   {"positions", json(double(d.kl.size()))},
                                   {"kl", kl},
                                   {"perplexity", json_object({{"model", perplexity(d.model)},
                                                               {"reference", perplexity(d.reference)}})},
                                   {"same_top_share", json(d.same_top_share())}})
                          .c_str());
}

void print_table(const Arguments& a, const Divergence& d) {
  std::printf("%s against %s, %zu positions of %zu tokens\n", one_line(a.model).c_str(), one_line(a.reference).c_str(),
              d.kl.size(), d.tokens);
  std::printf("  KL divergence   mean %.5f, median %.5f, 99th percentile %.4f nats\n", d.mean(), median(d.kl),
              quantile(d.kl, 0.99));
  std::printf("  perplexity      %.4f +- %.4f, reference %.4f +- %.4f, ratio %.4f\n", d.model.value(), d.model.error(),
              d.reference.value(), d.reference.error(), d.model.value() / d.reference.value());
  std::printf("  same top token  %.2f%%\n", d.same_top_share() * 100);
}

/// With --kl, --parallel, --draft and --worker, which use one kernel set and number of threads.
SessionOptions session_options(const Arguments& a) {
  SessionOptions options;
  options.threads = a.threads.empty() ? 0 : a.thread_counts[0];
  options.kernel = a.kernel_names[0].c_str();
  return options;
}

void measure_quality(const Arguments& a) {
  const TextModel model(a.model), reference(a.reference);
  const Divergence d = measure_divergence(model, reference, session_options(a), a.file);
  if (a.json)
    print_json(a, d);
  else
    print_table(a, d);
}

// ---- Several conversations ----

void measure_parallel(const Arguments& a) {
  Model model;
  if (!model.open(a.model.c_str())) throw Failure{1, model.error};
  const std::vector<ParallelSpeed> speeds = ParallelTest(model, session_options(a), a.conversations, a.quick).run();
  std::vector<std::string> list;
  if (!a.json) std::printf("depth  conversations   tok/s, all   tok/s, each   all / one   all / prompt\n");
  for (const ParallelSpeed& s : speeds) {
    if (!a.json)
      std::printf("%5d %14d %12.1f %13.1f %11.2f %14.2f\n", s.depth, s.conversations, s.tok_s,
                  s.tok_s / s.conversations, s.ratio_to_one, s.prompt_ratio);
    list.push_back(json_object({{"depth", json(s.depth)},
                                {"conversations", json(s.conversations)},
                                {"tok_s", json(s.tok_s)},
                                {"ratio_to_one", json(s.ratio_to_one)},
                                {"ratio_to_prompt", json(s.prompt_ratio)}}));
  }
  if (a.json)
    std::printf(
        "%s\n",
        json_object({{"model", json(a.model)}, {"cpu", json(cpu_name())}, {"parallel", json_array(list)}}).c_str());
}

// ---- A draft model ----

void measure_draft(const Arguments& a) {
  const std::vector<DraftSpeed> speeds = DraftTest(a.model, a.draft, session_options(a), a.quick).run();
  std::vector<std::string> list;
  if (!a.json)
    std::printf("temperature   tok/s without   with draft   with / without   guesses   right   tokens per pass\n");
  for (const DraftSpeed& s : speeds) {
    if (!a.json)
      std::printf("%11g %15.1f %12.1f %16.2f %9zu %7zu %17.2f\n", double(s.temperature), s.plain_tok_s(),
                  s.draft_tok_s(), s.ratio(), s.proposed, s.accepted, s.tokens_per_pass());
    list.push_back(json_object({{"temperature", json(double(s.temperature))},
                                {"texts", json(double(s.texts))},
                                {"tokens", json(double(s.tokens))},
                                {"tok_s", json(s.plain_tok_s())},
                                {"draft_tok_s", json(s.draft_tok_s())},
                                {"ratio", json(s.ratio())},
                                {"proposed", json(double(s.proposed))},
                                {"accepted", json(double(s.accepted))},
                                {"tokens_per_pass", json(s.tokens_per_pass())}}));
  }
  if (a.json)
    std::printf("%s\n", json_object({{"model", json(a.model)},
                                     {"draft_model", json(a.draft)},
                                     {"cpu", json(cpu_name())},
                                     {"draft", json_array(list)}})
                            .c_str());
}

void dispatch(const Arguments& a) {
  if (a.help)
    print_help();
  else if (a.worker)
    serve_commands(a.model, session_options(a));
  else if (!a.reference.empty())
    measure_quality(a);
  else if (!a.parallel.empty())
    measure_parallel(a);
  else if (!a.draft.empty())
    measure_draft(a);
  else
    measure_speed(a);
}

}  // namespace

int main(int argc, char** argv) {
  return guarded("bench", [&] { dispatch(parse(argc, argv)); });
}

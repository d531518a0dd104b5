// main.cpp: translate: translates a text line by line, with a model and a translation memory. See --help.
#include "../../models/progress_line.hpp"
#include "options.hpp"
#include "translator.hpp"

namespace pocket::translate {

// Translates the lines of a text, several at a time, one per thread, and prints them in order.
class Program {
 public:
  explicit Program(const Arguments& a) : a_(a) {}

  // Throws Failure.
  void run() {
    model_.open(a_.model, a_.load());
    if (!a_.memory.empty()) memory_.read(a_.memory);
    const std::string text = a_.has_text ? a_.text + "\n" : read_all(a_.file, kLongestText);
    const std::vector<std::string_view> lines = lines_of(text);
    Pool pool(int(std::min<size_t>(size_t(a_.thread_count()), lines.size())));
    for (int i = 0; i < pool.threads(); i++)
      translators_.push_back(std::make_unique<Translator>(model_, a_.memory.empty() ? nullptr : &memory_, a_.settings(),
                                                          a_.session_options()));
    const size_t together = size_t(pool.threads()) * 4;
    for (size_t first = 0; first < lines.size(); first += together) {
      const size_t count = std::min(together, lines.size() - first);
      translate(pool, lines.data() + first, count, first);
      progress(lines.size(), first + count);
    }
  }

 private:
  static constexpr uint64_t kLongestText = kLongestMeasuredText;

  // The lines of a text, without their line breaks.
  static std::vector<std::string_view> lines_of(std::string_view text) {
    std::vector<std::string_view> lines;
    while (!text.empty()) {
      const size_t end = text.find('\n');
      lines.push_back(text.substr(0, end));
      text.remove_prefix(end == text.npos ? text.size() : end + 1);
    }
    return lines;
  }

  void translate(Pool& pool, const std::string_view* lines, size_t count, size_t first) {
    std::vector<std::string> done(count), errors(count);
    pool.parallel_for(int(count), [&](int i, int thread) {
      try {
        if (!interrupted) done[size_t(i)] = translators_[size_t(thread)]->line(lines[i]);
      } catch (const Failure& failure) {
        errors[size_t(i)] = failure.what;
      }
    });
    stop_if_interrupted();
    progress_.clear();
    for (size_t i = 0; i < count; i++) {
      if (!errors[i].empty()) throw Failure{1, a_.name() + ":" + std::to_string(first + i + 1) + ": " + errors[i]};
      std::printf("%s\n", platform::is_terminal(1) ? without_controls(done[i]).c_str() : done[i].c_str());
    }
    if (std::fflush(stdout) != 0 || std::ferror(stdout))
      throw Failure{1, std::string("standard output: ") + std::strerror(errno)};
  }

  void progress(size_t lines, size_t done) {
    if (a_.quiet || done == lines) return;
    const double left = (seconds() - start_) / double(done) * double(lines - done);
    progress_.show(std::to_string(done) + " of " + std::to_string(lines) + " lines, " + duration_text(left) + " left");
  }

  const Arguments& a_;
  TranslationModel model_;
  TranslationMemory memory_;
  std::vector<std::unique_ptr<Translator>> translators_;  // one per thread
  ProgressLine progress_{"translate"};
  double start_ = seconds();
};

}  // namespace pocket::translate

int main(int argc, char** argv) {
  using namespace pocket;
  platform::take_arguments(argc, argv);
  return guarded(
      "translate",
      [&] {
        const translate::Arguments a = translate::parse(argc, argv);
        if (a.help) return translate::print_help();
        if (a.version) return void(std::printf("translate %s, model format %u\n", kVersion, kFormatVersion));
        translate::Program(a).run();
      },
      on_interrupt, "; or use --no-mmap");
}

// generate.hpp: run -m generate: goes on with a text, or with a saved session; and what it tells of its choices.
#ifndef POCKET_GENERATE_HPP
#define POCKET_GENERATE_HPP

#include <optional>

#include "cli.hpp"
#include "lookup.hpp"
#include "session_file.hpp"

namespace pocket::cli {

// ---- --top: what else it might have said ----

// A token as it reads in the middle of a text.
class TokenText {
 public:
  explicit TokenText(const Tokenizer& tokenizer) : tokenizer_(tokenizer), after_(tokenizer) {
    for (const int id : tokenizer.encode("a", false)) after_.push(id);
  }
  std::string operator()(int id) const {
    if (tokenizer_.type(id) == Tokenizer::PieceType::control) return std::string(tokenizer_.piece(id));
    Tokenizer::Stream stream = after_;
    const std::string text = stream.push(id);
    return text + stream.flush();
  }

 private:
  const Tokenizer& tokenizer_;
  Tokenizer::Stream after_;
};

// A sampler that tells, of each choice, the likeliest tokens as the model has them: before temperature, penalty and
// cuts.
class TellingSampler : public Sampler {
 public:
  TellingSampler(Run& run, const SamplerOptions& options) : Sampler(options), run_(run), text_(run.tokenizer) {}

  int operator()(const float* logits, int n) {
    const int id = Sampler::operator()(logits, n);
    if (run_.args.top > 0) tell(id, logits, n);
    return id;
  }

 private:
  void tell(int chosen, const float* logits, int n) {
    std::vector<int> ids(static_cast<size_t>(n));
    std::iota(ids.begin(), ids.end(), 0);
    const auto end = ids.begin() + std::min(run_.args.top, n);
    std::partial_sort(ids.begin(), end, ids.end(),
                      [&](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    const double sum = log_sum_exp(logits, n);
    const auto p = [&](int id) { return std::exp(logits[id] - sum); };
    const auto fields = [&](int id) {
      return std::vector<std::pair<std::string_view, std::string>>{
          {"id", std::to_string(id)}, {"text", json(text_(id))}, {"p", json(p(id))}};
    };
    std::vector<std::string> top;
    std::string line;
    for (auto id = ids.begin(); id != end; ++id) {
      char number[16];
      std::snprintf(number, sizeof number, " %.4f", p(*id));
      line += (line.empty() ? "" : ", ") + json(text_(*id)) + number;
      top.push_back(json_object(fields(*id)));
    }
    auto choice = fields(chosen);
    choice.push_back({"top", json_array(top)});
    if (run_.args.json)
      run_.figures.choices.push_back(json_object(choice));
    else
      std::fprintf(stderr, "%s %.4f of %s\n", json(text_(chosen)).c_str(), p(chosen), line.c_str());
  }

  Run& run_;
  TokenText text_;
};

// ---- The text ----

// A text that goes on: its tokens, what of it is printed, and the session that has heard it.
template <class Session> struct Text {
  Run& run;
  Session& session;
  SavedText saved;
  Tokenizer::Stream stream{run.tokenizer};
  StopFilter filter{run.args.stop};

  // Takes the prompt, and what comes before it if there is a file to resume. Returns the tokens to feed.
  std::vector<int> begin(SessionFile* file) {
    if constexpr (std::is_same_v<Session, pocket::Session>)
      if (file) saved = file->restore(session);
    for (const int id : saved.ids)
      printed(run.tokenizer, stream, id);  // was printed when it was made; half a character may be left
    const std::vector<int> prompt = prompt_ids(run, !file);
    saved.ids.insert(saved.ids.end(), prompt.begin(), prompt.end());
    if (session.position() == int(saved.ids.size())) session.rewind(session.position() - 1);  // its logits are gone
    const std::vector<int> fed(saved.ids.begin() + session.position(), saved.ids.end());
    check_room(session, fed.size());
    if (file) run.out.write(filter.push(std::exchange(saved.held, "")));
    for (const int id : run.args.instructed ? std::vector<int>() : prompt)  // an order is no part of the story
      run.out.write(printed(run.tokenizer, stream, id));
    return fed;
  }

  // The seed that -s names starts afresh, unless it is the session's own.
  SamplerOptions sampler_options(bool resumed) {
    SamplerOptions options = run.sampler_options();
    if (resumed && (run.args.seed.empty() || run.seed == saved.seed))
      run.seed = saved.seed, options.seed = saved.random_state;
    return options;
  }
};

// Why a text has ended.
template <class Session> const char* end_of(const Text<Session>& text, int limit) {
  if (text.filter.stopped) return "stop text";
  if (int(text.run.figures.tokens) == limit) return "tokens";
  const int heard = text.run.bytes ? int(text.saved.ids.size()) : text.session.position();
  return heard >= text.session.context() ? "context" : "stop token";
}

// Goes on with the text; what is made is in it, and printed. False if it failed or was interrupted.
template <class Session> bool write_text(Text<Session>& text, TellingSampler& pick, const std::vector<int>& fed) {
  Run& run = text.run;
  Lookup lookup(text.saved.ids, seconds);
  bool good = false;
  try {
    good = make_text(run, text.session, pick, text.stream, text.filter, fed, text.saved.ids,
                     run.args.lookup ? Propose([&] { return lookup.propose(); }) : Propose());
  } catch (const Failure& f) {
    if (f.status != 130) throw;  // Ctrl-C in a long prompt
  }
  lookup.settle();
  run.figures.guesses = lookup.proposed, run.figures.guesses_right = lookup.accepted;
  run.figures.end = end_of(text, token_limit(run.args));
  return good;
}

template <class Session> void generate_text(Run& run) {
  const Arguments& a = run.args;
  std::optional<SessionFile> file;
  SessionOptions options = run.session_options();
  if (!a.resume.empty()) file.emplace(a.resume, run.model).fill(options);
  OpenSessionOf<Session> open(run.model_of<Session>(), options);
  Text<Session> text{run, open.session, {}};
  const std::vector<int> fed = text.begin(file ? &*file : nullptr);
  std::optional<NewFile> save_to;
  if (!a.save.empty()) save_to.emplace(a.save);  // now, so that a place where it cannot be is known before
  TellingSampler pick(run, text.sampler_options(file.has_value()));
  for (int i = 0; i < open.session.position(); i++) pick.remember(text.saved.ids[size_t(i)]);

  const bool good = write_text(text, pick, fed);
  if (!save_to && !text.filter.stopped) run.out.write(text.filter.push(text.stream.flush()) + text.filter.flush());
  run.out.end_text();
  if (save_to && (good || interrupted)) {
    text.saved.held = text.filter.flush();
    text.saved.seed = run.seed, text.saved.random_state = pick.random_state();
    if constexpr (std::is_same_v<Session, pocket::Session>) save(open.session, text.saved, *save_to);
  }
  if (!good) fail(open.session);
  stop_if_interrupted();
  print_figures(run, open.session);
}

}  // namespace pocket::cli
#endif  // POCKET_GENERATE_HPP

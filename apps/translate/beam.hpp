// beam.hpp: the most probable continuations of a text, by beam search.
//
// The search keeps the few most probable beginnings (the beams), extends each by every token, and keeps the most
// probable results. All beams take one forward pass together. A continuation is complete at a token that ends it. One
// that has the same four tokens twice is dropped.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../export/engine.hpp"
#include "../../export/program.hpp"
#include "../cli/portable_log_sum_exp.hpp"

namespace pocket::translate {

// A continuation: its tokens, without the one that ends it.
struct Hypothesis {
  std::vector<int> ids;
  double log_probability = 0;  // of the tokens, and of the end
  bool complete = false;

  // The mean log probability of a token, the end included. Sums would favour short continuations.
  double score() const { return log_probability / double(ids.size() + 1); }
};

// A model that continues texts. One thread at a time uses an object.
class BeamSearch {
 public:
  // beams: at least 1. ends: of each token of the vocabulary, whether it ends a text. All outlive the object. Throws
  // Failure.
  BeamSearch(const Model& model, const SessionOptions& options, int beams, const std::vector<bool>& ends)
      : ends_(ends), beams_(size_t(beams)), workspace_(model, options), prompt_(workspace_, options) {
    for (size_t i = 0; i < 2 * beams_; i++) sessions_.push_back(std::make_unique<Session>(workspace_, options));
    for (const auto& session : sessions_) check(session->error);
    check(workspace_.error);
    check(prompt_.error);
  }

  int context() const { return prompt_.context(); }

  // Processes a prompt of at least one token, fewer than the context. What prompts have in common is not computed again.
  void begin(const std::vector<int>& prompt) {
    size_t same = size_t(std::mismatch(prompt.begin(), prompt.end(), ids_.begin(), ids_.end()).first - prompt.begin());
    same = std::min(same, prompt.size() - 1);
    prompt_.rewind(int(same));
    ids_ = prompt;
    const float* logits = prompt_.forward(prompt.data() + same, prompt.size() - same);
    if (!logits) throw Failure{1, prompt_.error};
    first_.assign(logits, logits + vocab_size());
  }

  // The continuations of the prompt that were found, best first: complete ones, at most as many as beams, or if there is
  // none of at most `most` tokens the most probable incomplete one.
  std::vector<Hypothesis> search(size_t most) {
    std::vector<Hypothesis> found;
    std::vector<Beam> beams = {{&prompt_, {}, first_.data()}};
    most = std::min(most, size_t(context()) - ids_.size());
    while (!beams.empty() && found.size() < beams_) {
      const std::vector<Extension> best = extensions(beams);
      std::vector<Beam> next;
      for (const Extension& e : best) {
        Hypothesis h = beams[e.beam].text;
        h.log_probability = e.log_probability;
        h.complete = ends_[size_t(e.id)];
        if (!h.complete) h.ids.push_back(e.id);
        if (h.complete && found.size() < beams_)
          found.push_back(std::move(h));
        else if (!h.complete && next.size() < beams_ && !repeats(h.ids))
          next.push_back({beams[e.beam].session, std::move(h), nullptr});
      }
      if (next.empty() && found.empty()) found.push_back(beams[0].text);
      if (!next.empty() && next[0].text.ids.size() >= most) {
        if (found.empty()) found.push_back(next[0].text);
        break;
      }
      if (found.size() < beams_ && !next.empty()) forward(beams, next);
      beams = std::move(next);
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const Hypothesis& a, const Hypothesis& b) { return a.score() > b.score(); });
    return found;
  }

 private:
  struct Beam {
    Session* session;  // has processed the text
    Hypothesis text;
    const float* logits;  // after the text
  };

  // A beam and a next token.
  struct Extension {
    double log_probability;  // of the text with the token
    size_t beam;
    int id;

    bool operator<(const Extension& o) const {  // best first
      if (log_probability != o.log_probability) return log_probability > o.log_probability;
      return beam != o.beam ? beam < o.beam : id < o.id;
    }
  };

  // Whether the last tokens of a text occur in it before: a weak model does not get out of a repetition.
  static bool repeats(const std::vector<int>& ids) {
    constexpr ptrdiff_t kRepeated = 4;
    if (ptrdiff_t(ids.size()) <= kRepeated) return false;
    return std::search(ids.begin(), ids.end() - 1, ids.end() - kRepeated, ids.end()) != ids.end() - 1;
  }

  static void check(const std::string& error) {
    if (!error.empty()) throw Failure{1, error};
  }
  int vocab_size() const { return prompt_.vocab_size(); }

  // The most probable extensions, best first: twice as many as beams, so that enough remain when some of them end.
  std::vector<Extension> extensions(const std::vector<Beam>& beams) const {
    std::vector<Extension> all;
    for (size_t b = 0; b < beams.size(); b++) {
      const double before = beams[b].text.log_probability - cli::portable_log_sum_exp(beams[b].logits, vocab_size());
      std::vector<Extension> of_beam;
      for (int id = 0; id < vocab_size(); id++) of_beam.push_back({before + double(beams[b].logits[id]), b, id});
      const auto end = of_beam.begin() + ptrdiff_t(std::min(2 * beams_, of_beam.size()));
      std::partial_sort(of_beam.begin(), end, of_beam.end());
      all.insert(all.end(), of_beam.begin(), end);
    }
    std::sort(all.begin(), all.end());
    all.resize(std::min(all.size(), 2 * beams_));
    return all;
  }

  // Runs the last token of each new beam. A session goes on with the first of its beams; the others get copies.
  void forward(const std::vector<Beam>& before, std::vector<Beam>& beams) {
    std::vector<Session*> free;
    for (const auto& session : sessions_) {
      const auto uses = [&](const Beam& b) { return b.session == session.get(); };
      if (std::none_of(before.begin(), before.end(), uses)) free.push_back(session.get());
    }
    std::vector<Session*> taken = {&prompt_};  // which stays at the end of the prompt
    for (Beam& beam : beams) {
      if (std::find(taken.begin(), taken.end(), beam.session) != taken.end()) {
        fork(*free.back(), *beam.session);
        beam.session = free.back();
        free.pop_back();
      }
      taken.push_back(beam.session);
    }
    std::vector<Step> steps;
    for (const Beam& beam : beams) steps.push_back({beam.session, &beam.text.ids.back(), 1});
    if (!workspace_.forward(steps.data(), steps.size()))
      for (const Step& step : steps) check(step.session->error);
    for (size_t i = 0; i < beams.size(); i++) beams[i].logits = steps[i].logits;
  }

  static void fork(Session& session, const Session& parent) {
    if (!session.fork(parent, parent.position())) throw Failure{1, session.error};
  }

  const std::vector<bool>& ends_;
  size_t beams_;
  Workspace workspace_;
  Session prompt_;
  std::vector<std::unique_ptr<Session>> sessions_;  // of the beams, and as many to copy them to
  std::vector<int> ids_;                            // the prompt
  std::vector<float> first_;                        // (vocab_size): the logits after it
};

}  // namespace pocket::translate

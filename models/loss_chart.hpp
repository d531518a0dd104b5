// loss_chart.hpp: the losses of a training: a table (loss.csv) that grows while it runs, and a chart (loss.svg).
#pragma once

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "../export/engine.hpp"
#include "../export/output_file.hpp"

namespace pocket {

// A row of loss.csv. NaN marks a value that was not measured at this step: an empty field of the table, no point of the
// chart.
struct LossRow {
  static constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

  int64_t step = 0;                          // optimizer steps done
  int64_t tokens = 0;                        // tokens trained on so far
  double seconds = 0;                        // time of training so far
  double train = kNone, validation = kNone;  // mean loss in nats per token
  double bits_per_character = kNone;         // of the validation text
  double learning_rate = kNone;
};

namespace chart_detail {

inline constexpr char kHeader[] =
    "step,tokens,seconds,train_nats_per_token,validation_nats_per_token,bits_per_character,learning_rate\n";

inline std::string format(const char* pattern, double value) {
  if (!std::isfinite(value)) return "";
  char text[64];
  std::snprintf(text, sizeof text, pattern, value);
  return text;
}

inline std::string csv_line(const LossRow& r) {
  return std::to_string(r.step) + "," + std::to_string(r.tokens) + "," + format("%.1f", r.seconds) + "," +
         format("%.6f", r.train) + "," + format("%.6f", r.validation) + "," + format("%.6f", r.bits_per_character) +
         "," + format("%.6g", r.learning_rate) + "\n";
}

inline bool parse_csv_line(std::string_view line, LossRow& r) {
  double step = 0, tokens = 0;
  double* const fields[] = {&step,           &tokens, &r.seconds, &r.train, &r.validation, &r.bits_per_character,
                            &r.learning_rate};
  for (double* field : fields) {
    if (line.empty()) return false;
    const size_t comma = line.find_first_of(",\n");
    const std::string text(line.substr(0, comma));
    char* end = nullptr;
    *field = text.empty() ? LossRow::kNone : std::strtod(text.c_str(), &end);
    if (comma == line.npos || (end && *end)) return false;
    line.remove_prefix(comma + 1);
  }
  constexpr double kMost = 9e15;  // integers up to here are exact in a double
  if (!line.empty() || !(step >= 0 && step < kMost) || !(tokens >= 0 && tokens < kMost)) return false;
  r.step = int64_t(step);
  r.tokens = int64_t(tokens);
  return true;
}

// A number of tokens in short: 500, 20k, 1.5M, 3B.
inline std::string short_count(double n) {
  return n >= 1e9   ? format("%gB", n / 1e9)
         : n >= 1e6 ? format("%gM", n / 1e6)
         : n >= 1e3 ? format("%gk", n / 1e3)
                    : format("%g", n);
}

inline std::string escape_xml(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    std::string c;
    tokenizer_detail::take_character(text, false, c);
    if (c == "<") c = "&lt;";
    if (c == "&") c = "&amp;";
    out += c.size() == 1 && uint8_t(c[0]) < 32 ? " " : c;  // XML has no control characters
  }
  return out;
}

// An axis of the drawing: the positions of values along it, and its tick marks.
struct Axis {
  double low, high;  // range of values
  double from, to;   // their positions in the drawing
  bool logarithmic = false;
  std::vector<double> ticks = {};

  double at(double value) const {
    const double share = logarithmic ? std::log(value / low) / std::log(high / low) : (value - low) / (high - low);
    return from + share * (to - from);
  }
};

// Ticks at multiples of 1, 2 or 5 times a power of ten, at most `most` steps, from below `low` to above `high`.
inline Axis linear_axis(double low, double high, double from, double to, int most) {
  const double width = high > low ? high - low : std::max(1e-3, std::fabs(high));
  double step = std::pow(10, std::floor(std::log10(width / most)));
  for (const double factor : {2.0, 2.5, 2.0})
    if (std::ceil((low + width) / step) - std::floor(low / step) > most) step *= factor;
  const double first = std::floor(low / step), last = std::ceil((low + width) / step);
  Axis a = {first * step, last * step, from, to};
  for (int i = 0; i <= last - first; i++) a.ticks.push_back((first + i) * step);
  return a;
}

// Logarithmic if the number of tokens grows tenfold or more, since the loss falls with the logarithm of it.
inline Axis token_axis(double first, double last, double from, double to) {
  if (!(first > 0 && last >= 10 * first)) return linear_axis(0, std::max(last, 1.0), from, to, 10);
  Axis a = {first, last, from, to, true};
  const bool many = last >= 1e4 * first;  // then 1, 10, 100; else 1, 2, 5, 10
  for (double power = std::pow(10, std::floor(std::log10(first))); power <= last; power *= 10)
    for (double digit : {1, 2, 5})
      if (digit * power >= first && digit * power <= last && (digit == 1 || !many)) a.ticks.push_back(digit * power);
  return a;
}

// The drawing is 960 x 520. The area of the plot:
inline constexpr double kLeft = 80, kRight = 930, kTop = 60, kBottom = 450;

inline constexpr char kStyle[] =
    "<style>\n"
    "svg{background:#fff;color:#222;font:14px sans-serif}text{fill:currentColor}\n"
    ".title{font-size:18px}.grid{stroke:currentColor;opacity:.15}.frame{stroke:currentColor;fill:none}\n"
    "polyline{fill:none;stroke-linejoin:round}.train{stroke:#4477aa;stroke-width:1.2}\n"
    ".validation{stroke:#cc3311;stroke-width:2}circle{fill:#cc3311}\n"
    "@media (prefers-color-scheme:dark){svg{background:#16181c;color:#ddd}.train{stroke:#77aadd}\n"
    ".validation{stroke:#ee8866}circle{fill:#ee8866}}\n"
    "</style>\n";

inline std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  char head[120];
  std::snprintf(head, sizeof head, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", x, y, anchor);
  return head + text + "</text>\n";
}

inline std::string line_of(const char* style, double x1, double y1, double x2, double y2) {
  char line[160];
  std::snprintf(line, sizeof line, "<line class=\"%s\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", style, x1,
                y1, x2, y2);
  return line;
}

inline std::string draw_axes(const Axis& x, const Axis& y) {
  std::string out = "<g id=\"x\">\n";
  for (double tick : x.ticks)
    out += line_of("grid", x.at(tick), kTop, x.at(tick), kBottom) +
           text_at(x.at(tick), kBottom + 20, "middle", short_count(tick));
  out += "</g>\n<g id=\"y\">\n";
  for (double tick : y.ticks)
    out += line_of("grid", kLeft, y.at(tick), kRight, y.at(tick)) +
           text_at(kLeft - 8, y.at(tick) + 5, "end", format("%g", tick));
  char frame[160];
  std::snprintf(frame, sizeof frame, "<rect class=\"frame\" x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\"/>\n", kLeft,
                kTop, kRight - kLeft, kBottom - kTop);
  return out + "</g>\n" + frame +
         text_at((kLeft + kRight) / 2, kBottom + 45, "middle",
                 x.logarithmic ? "tokens trained on (logarithmic)" : "tokens trained on") +
         "<g transform=\"rotate(-90)\">" + text_at(-(kTop + kBottom) / 2, 24, "middle", "loss, nats per token") +
         "</g>\n";
}

// The rows that have this value and a position on the axis, without rows within half a unit of the previous one.
inline std::vector<LossRow> visible(const std::vector<LossRow>& rows, double LossRow::*value, const Axis& x) {
  std::vector<LossRow> out;
  for (size_t i = 0; i < rows.size(); i++) {
    const double tokens = double(rows[i].tokens);
    if (!std::isfinite(rows[i].*value) || (x.logarithmic && tokens <= 0)) continue;
    if (out.empty() || x.at(tokens) - x.at(double(out.back().tokens)) >= 0.5 || i + 1 == rows.size())
      out.push_back(rows[i]);
  }
  return out;
}

inline std::string draw_curve(const std::vector<LossRow>& rows, double LossRow::*value, const char* style,
                              const Axis& x, const Axis& y) {
  std::string points;
  for (const LossRow& r : visible(rows, value, x))
    points +=
        (points.empty() ? "" : " ") + format("%.2f", x.at(double(r.tokens))) + "," + format("%.2f", y.at(r.*value));
  return std::string("<polyline class=\"") + style + "\" points=\"" + points + "\"/>\n";
}

// A dot for each validation, with its figures as a tooltip.
inline std::string draw_dots(const std::vector<LossRow>& rows, const Axis& x, const Axis& y) {
  std::string out;
  for (const LossRow& r : visible(rows, &LossRow::validation, x))
    out += "<circle cx=\"" + format("%.2f", x.at(double(r.tokens))) + "\" cy=\"" + format("%.2f", y.at(r.validation)) +
           "\" r=\"3\"><title>step " + std::to_string(r.step) + ", " + std::to_string(r.tokens) + " tokens, " +
           format("%.0f s: ", r.seconds) + format("%.4f nats per token", r.validation) +
           format(", %.4f bits per character", r.bits_per_character) + "</title></circle>\n";
  return out;
}

// The legend, with the last value of each curve.
inline std::string draw_legend(const std::vector<LossRow>& rows) {
  LossRow last;
  for (const LossRow& r : rows) {
    if (std::isfinite(r.train)) last.train = r.train;
    if (std::isfinite(r.validation)) last.validation = r.validation;
    if (std::isfinite(r.bits_per_character)) last.bits_per_character = r.bits_per_character;
  }
  std::string train = "training", validation = "validation";
  if (std::isfinite(last.train)) train += format(" %.3f nats per token", last.train);
  if (std::isfinite(last.validation)) validation += format(" %.3f nats per token", last.validation);
  if (std::isfinite(last.bits_per_character))
    validation += format(", %.3f bits per character", last.bits_per_character);
  const double x = kRight - 430, y = kTop + 25;
  return "<g id=\"legend\">\n" + line_of("train", x, y - 5, x + 30, y - 5) + text_at(x + 38, y, "start", train) +
         line_of("validation", x, y + 17, x + 30, y + 17) + text_at(x + 38, y + 22, "start", validation) + "</g>\n";
}

}  // namespace chart_detail

// The rows as CSV, with a header line.
inline std::string loss_csv(const std::vector<LossRow>& rows) {
  std::string text = chart_detail::kHeader;
  for (const LossRow& r : rows) text += chart_detail::csv_line(r);
  return text;
}

// Parses the output of loss_csv(). An incomplete last line, left by a program that was killed, is ignored.
inline bool parse_loss_csv(std::string_view text, std::vector<LossRow>& rows, std::string& error) {
  rows.clear();
  size_t number = 1;
  for (size_t end; (end = text.find('\n')) != text.npos; number++) {
    const std::string_view line = text.substr(0, end + 1);
    text.remove_prefix(end + 1);
    if (number == 1 && line != chart_detail::kHeader)
      return fail(error, "line 1: expected the header of a loss table, found '" +
                             std::string(line.substr(0, line.size() - 1)) + "'");
    if (number > 1 && !chart_detail::parse_csv_line(line, rows.emplace_back()))
      return fail(error, "line " + std::to_string(number) + ": expected 7 numbers, found '" +
                             std::string(line.substr(0, line.size() - 1)) + "'");
  }
  return number > 1 || fail(error, "expected a loss table, found no complete line");
}

// A chart of both losses over tokens, as a self-contained SVG that follows the viewer's light or dark scheme. title:
// UTF-8, drawn above the chart.
inline std::string loss_svg(const std::vector<LossRow>& rows, const std::string& title) {
  using namespace chart_detail;
  double first = 0, last = 0, low = INFINITY, high = -INFINITY;
  for (const LossRow& r : rows) {
    if (first == 0) first = double(r.tokens);
    last = std::max(last, double(r.tokens));
  }
  const Axis x = token_axis(first, last, kLeft, kRight);
  for (const LossRow& r : rows)
    for (double loss : {r.train, r.validation})
      if (std::isfinite(loss) && !(x.logarithmic && r.tokens <= 0)) {
        low = std::min(low, loss);
        high = std::max(high, loss);
      }
  const Axis y = linear_axis(high < low ? 0 : low, high < low ? 1 : high, kBottom, kTop, 8);
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 960 520\" width=\"960\" height=\"520\" "
         "role=\"img\">\n<title>" +
         escape_xml(title) + "</title>\n" + kStyle + "<g class=\"title\">" +
         text_at(kLeft, 36, "start", escape_xml(title)) + "</g>\n" + draw_axes(x, y) +
         draw_curve(rows, &LossRow::train, "train", x, y) + draw_curve(rows, &LossRow::validation, "validation", x, y) +
         draw_dots(rows, x, y) + draw_legend(rows) + "</svg>\n";
}

// The files of the table and the chart of a running training.
class LossLog {
 public:
  LossLog() = default;
  LossLog(const LossLog&) = delete;
  LossLog& operator=(const LossLog&) = delete;
  ~LossLog() { close(); }

  // Starts a new table; or, with resume_step >= 0, continues the existing one from that step: later rows are removed,
  // since their steps are repeated. On failure returns false with `error` set: the file is not a loss table, or cannot
  // be written.
  bool open(const std::string& csv, const std::string& svg, const std::string& title, int64_t resume_step,
            std::string& error) {
    close();
    csv_ = csv;
    svg_ = svg;
    title_ = title;
    rows_.clear();
    std::string text;
    if (resume_step >= 0 && exists(csv)) {
      if (!read_small_file(csv, kMostBytes, text, error)) return false;
      if (!parse_loss_csv(text, rows_, error))
        return fail(error, csv + ": " + error + "; move the file to start a new table");
      while (!rows_.empty() && rows_.back().step > resume_step) rows_.pop_back();
    }
    if (!write_whole_file(csv, loss_csv(rows_), error)) return false;
    file_ = open_existing(csv, error);
    return file_ >= 0;
  }

  // Appends a row to the table immediately. If the disk is full, the table keeps only complete rows.
  bool add(const LossRow& row, std::string& error) {
    const std::string line = chart_detail::csv_line(row);
    const uint64_t before = platform::info_of(file_).size;
    const int64_t written = platform::write_at(file_, line.data(), line.size(), before);
    if (written == int64_t(line.size())) {
      rows_.push_back(row);
      return true;
    }
    fail(error, csv_ + ": " + std::strerror(written < 0 ? errno : ENOSPC));
    return written > 0 && !platform::set_size(file_, before) ? fail(error, error + "; the last line is incomplete")
                                                             : false;
  }

  // Writes the chart of all rows.
  bool draw(std::string& error) const { return write_whole_file(svg_, loss_svg(rows_, title_), error); }

  const std::vector<LossRow>& rows() const { return rows_; }

 private:
  static constexpr uint64_t kMostBytes = 256 << 20;

  void close() {
    if (file_ >= 0) platform::close(file_);
    file_ = -1;
  }

  std::string csv_, svg_, title_;
  std::vector<LossRow> rows_;
  int file_ = -1;
};

}  // namespace pocket

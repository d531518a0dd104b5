// loss_chart_test.cpp: the table and the chart of a training. The chart is read by the numbers at its axes.
#include "../../models/loss_chart.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <regex>

#include "../support/files.hpp"
#include "../support/program.hpp"

namespace loss_chart_test {

using namespace pocket;

constexpr double kNone = LossRow::kNone;

// A typical falling loss; every fourth row has a validation.
std::vector<LossRow> some_rows(int n, int64_t tokens_a_step) {
  std::vector<LossRow> rows;
  for (int i = 1; i <= n; i++) {
    const double loss = 1.5 + 5.4 / std::pow(i, 0.6);
    const bool validated = i % 4 == 0 || i == n;
    rows.push_back({i, i * tokens_a_step, 0.25 * i, loss, validated ? loss + 0.1 : kNone,
                    validated ? (loss + 0.1) / 2.1 : kNone, 1e-3 / i});
  }
  return rows;
}

struct Point {
  double x, y;
};

std::vector<Point> points_of(const std::string& svg, const std::string& curve) {
  std::smatch found;
  const std::regex polyline("<polyline class=\"" + curve + "\" points=\"([^\"]*)\"/>");
  EXPECT_TRUE(std::regex_search(svg, found, polyline)) << curve;
  std::vector<Point> points;
  std::istringstream in(found[1]);
  char comma;
  for (Point p; in >> p.x >> comma >> p.y;) points.push_back(p);
  return points;
}

double value_of(const std::string& label) {
  const double units = label.back() == 'k' ? 1e3 : label.back() == 'M' ? 1e6 : label.back() == 'B' ? 1e9 : 1;
  return std::stod(label) * units;
}

// The ticks of an axis: value and position.
std::vector<std::pair<double, double>> marks_of(const std::string& svg, const std::string& axis) {
  const size_t begin = svg.find("<g id=\"" + axis + "\">");
  const std::string group = svg.substr(begin, svg.find("</g>", begin) - begin);
  const std::regex mark("<line [^>]* " + axis + "1=\"([0-9.]+)\"[^>]*>\n<text [^>]*>([^<]+)<");
  std::vector<std::pair<double, double>> marks;
  for (std::sregex_iterator m(group.begin(), group.end(), mark), end; m != end; ++m)
    marks.emplace_back(value_of((*m)[2]), std::stod((*m)[1]));
  EXPECT_GE(marks.size(), 3u) << group;
  return marks;
}

// The value at a position along an axis, from its first and last tick.
double read_off(const std::vector<std::pair<double, double>>& marks, double place, bool logarithmic) {
  const auto [a, from] = marks.front();
  const auto [b, to] = marks.back();
  const double share = (place - from) / (to - from);
  return logarithmic ? a * std::pow(b / a, share) : a + share * (b - a);
}

void expect_xml(const std::string& svg) {
  TemporaryFolder folder;
  const ProgramResult r = run_program({"python3", "-c",
                                       "import sys, xml.etree.ElementTree as e\n"
                                       "print(e.parse(sys.argv[1]).getroot().tag)",
                                       folder.write("chart.svg", svg)});
  EXPECT_EQ(r.out, "{http://www.w3.org/2000/svg}svg\n") << r.err;
}

void expect_readable(const std::vector<LossRow>& rows, bool logarithmic) {
  const std::string svg = loss_svg(rows, "story");
  expect_xml(svg);
  const auto x = marks_of(svg, "x"), y = marks_of(svg, "y");
  const double span = double(rows.back().tokens) / double(rows.front().tokens);
  for (const auto& [curve, member] :
       {std::pair("train", &LossRow::train), std::pair("validation", &LossRow::validation)}) {
    const std::vector<Point> points = points_of(svg, curve);
    ASSERT_GE(points.size(), 2u);
    size_t row = 0;
    for (const Point& p : points) {
      EXPECT_TRUE(p.x >= 80 && p.x <= 930 && p.y >= 60 && p.y <= 450) << p.x << " " << p.y;
      const double tokens = read_off(x, p.x, logarithmic), loss = read_off(y, p.y, false);
      while (row < rows.size() && (!std::isfinite(rows[row].*member) ||
                                   double(rows[row].tokens) < tokens * (1 - 0.001 * std::log(span)) -
                                                                  1e-3 * double(rows.back().tokens) * !logarithmic))
        row++;
      ASSERT_LT(row, rows.size());
      EXPECT_NEAR(loss, rows[row].*member, 0.02 + 0.002 * loss) << curve << " at " << tokens << " tokens";
    }
    EXPECT_NEAR(points.back().x, 930, logarithmic ? 0.1 : 200);
  }
}

TEST(LossChart, PointsMatchAxes) {
  expect_readable(some_rows(300, 16384), true);   // 16k to 4.9M tokens
  expect_readable(some_rows(9, 1000), false);     // too few for powers of ten
  expect_readable(some_rows(20000, 5000), true);  // more rows than the chart has pixels
}

TEST(LossChart, SizeIsBounded) { EXPECT_LT(loss_svg(some_rows(100000, 5000), "story").size(), 300000u); }

TEST(LossChart, HasTitleLegendAndUnits) {
  const std::string svg = loss_svg(some_rows(300, 16384), "a < b & \"c\"\x01");
  for (const char* text :
       {"a &lt; b &amp; \"c\" <", "tokens trained on", "nats per token", "training 1.676 nats per token",
        "validation 1.776 nats per token, 0.846 bits per character", "prefers-color-scheme:dark"})
    EXPECT_NE(svg.find(text), std::string::npos) << text;
  expect_xml(svg);
}

TEST(LossChart, DrawsFewAndIncompleteRows) {
  std::vector<LossRow> rows;
  expect_xml(loss_svg(rows, ""));
  rows.push_back({0, 0, 0, kNone, 6.93, 3.1, kNone});
  expect_xml(loss_svg(rows, "caf\xC3\xA9 \xFF"));
  rows.push_back({1, 100, 1, INFINITY, kNone, kNone, 1});
  rows.push_back({2, 5000, 1, 3.5, 3.5, kNone, 1});
  const std::string svg = loss_svg(rows, "story");
  expect_xml(svg);
  EXPECT_EQ(points_of(svg, "train").size(), 1u);
  EXPECT_EQ(svg.find("nan"), svg.npos);
  EXPECT_EQ(svg.find("inf"), svg.npos);
}

// Numbers that are so large that adding 1 does not change them.
TEST(LossChart, HasFewTicksForLargeLosses) {
  std::vector<LossRow> rows;
  rows.push_back({1, 100, 1, 1e18, kNone, kNone, 1});
  rows.push_back({2, 200, 1, 1e18 + 256, kNone, kNone, 1});
  const std::string svg = loss_svg(rows, "story");
  expect_xml(svg);
  EXPECT_LT(svg.size(), 20000u);
}

void expect_same(const std::vector<LossRow>& a, const std::vector<LossRow>& b) {
  EXPECT_EQ(loss_csv(a), loss_csv(b));
}

TEST(LossTable, RoundTrips) {
  const std::vector<LossRow> rows = some_rows(25, 16384);
  EXPECT_EQ(loss_csv({rows[0], rows[3]}),
            "step,tokens,seconds,train_nats_per_token,validation_nats_per_token,bits_per_character,learning_rate\n"
            "1,16384,0.2,6.900000,,,0.001\n"
            "4,65536,1.0,3.850487,3.950487,1.881184,0.00025\n");
  std::vector<LossRow> back;
  std::string error;
  ASSERT_TRUE(parse_loss_csv(loss_csv(rows), back, error)) << error;
  expect_same(back, rows);
  ASSERT_TRUE(parse_loss_csv(loss_csv(rows) + "26,425984,6.5,1.9", back, error)) << error;
  expect_same(back, rows);
}

TEST(LossTable, RejectsOtherText) {
  std::vector<LossRow> rows;
  const std::string good = loss_csv(some_rows(2, 100));
  for (const std::string& text :
       {std::string(), std::string("step,loss\n1,2\n"), good + "3,300,1\n", good + "3,x,1,1,1,1,1\n",
        good + "-1,300,1,1,1,1,1\n", good + "3,300,1,1,1,1,1,1\n", good + ",300,1,1,1,1,1\n"}) {
    std::string error;
    EXPECT_FALSE(parse_loss_csv(text, rows, error)) << text;
    EXPECT_NE(error.find("expected"), error.npos);
  }
}

class LossFiles : public testing::Test {
 protected:
  bool open(LossLog& log, int64_t resume_step) { return log.open(csv, svg, "story", resume_step, error); }
  void add(LossLog& log, const std::vector<LossRow>& rows, size_t from) {
    for (size_t i = from; i < rows.size(); i++) ASSERT_TRUE(log.add(rows[i], error)) << error;
  }

  TemporaryFolder folder;
  const std::string csv = folder.file("loss.csv"), svg = folder.file("loss.svg");
  const std::vector<LossRow> rows = some_rows(30, 16384);
  std::string error;
};

TEST_F(LossFiles, GrowDuringTraining) {
  LossLog log;
  ASSERT_TRUE(open(log, -1)) << error;
  EXPECT_EQ(read_file(csv), loss_csv({}));
  ASSERT_TRUE(log.add(rows[0], error));
  EXPECT_EQ(read_file(csv), loss_csv({rows[0]}));
  add(log, rows, 1);
  EXPECT_EQ(read_file(csv), loss_csv(rows));
  ASSERT_TRUE(log.draw(error)) << error;
  EXPECT_EQ(read_file(svg), loss_svg(rows, "story"));
  EXPECT_EQ(folder.list(), "loss.csv\nloss.svg\n");
}

// Interrupted at step 30, resumed from a checkpoint of step 20: the final table is that of an uninterrupted run.
TEST_F(LossFiles, ContinueFromCheckpoint) {
  {
    LossLog log;
    ASSERT_TRUE(open(log, -1));
    add(log, rows, 0);
  }
  LossLog log;
  ASSERT_TRUE(open(log, 20)) << error;
  EXPECT_EQ(log.rows().size(), 20u);
  add(log, rows, 20);
  EXPECT_EQ(read_file(csv), loss_csv(rows));
  ASSERT_TRUE(open(log, -1)) << error;
  EXPECT_EQ(read_file(csv), loss_csv({}));
}

TEST_F(LossFiles, GrowAtTheEndOfSymbolicLink) {
  const std::string target = folder.write("target.csv", "");
  std::filesystem::create_symlink(target, csv);
  LossLog log;
  ASSERT_TRUE(open(log, -1)) << error;
  add(log, rows, 0);
  EXPECT_TRUE(std::filesystem::is_symlink(csv));
  EXPECT_EQ(read_file(target), loss_csv(rows));
}

TEST_F(LossFiles, KeepFilesThatAreNotLossTables) {
  folder.write("loss.csv", "my,own\n");
  LossLog log;
  EXPECT_FALSE(open(log, 5));
  EXPECT_NE(error.find(csv + ": line 1: expected"), error.npos) << error;
  EXPECT_EQ(read_file(csv), "my,own\n");
  EXPECT_FALSE(log.open(folder.file("no/loss.csv"), svg, "", -1, error));
  EXPECT_NE(error.find("no/loss.csv"), error.npos);
}

// The table ends with a complete row, and the previous chart remains.
TEST_F(LossFiles, FullDiskLeavesCompleteRows) {
  LossLog log;
  ASSERT_TRUE(open(log, -1));
  ASSERT_TRUE(log.add(rows[0], error));
  ASSERT_TRUE(log.draw(error));
  const std::string table = read_file(csv), chart = read_file(svg);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit little = {table.size() + 10, before.rlim_max};
  signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &little);
  EXPECT_FALSE(log.add(rows[1], error));
  EXPECT_NE(error.find(csv), error.npos);
  EXPECT_FALSE(log.draw(error));
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(read_file(csv), table);
  EXPECT_EQ(read_file(svg), chart);
  EXPECT_EQ(folder.list(), "loss.csv\nloss.svg\n");
  EXPECT_TRUE(log.add(rows[1], error));
  EXPECT_EQ(read_file(csv), loss_csv({rows[0], rows[1]}));
}

}  // namespace loss_chart_test

// report.hpp: the quantization error of each matrix, as a CSV table or an HTML page.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "engine.hpp"
#include "output_file.hpp"

namespace pocket {

/// A matrix in the report.
struct ReportRow {
  std::string tensor;
  Type type;
  int rows, cols;
  uint64_t bytes;
  double error;  // relative RMS error of the outputs: from this matrix's weights alone
  double drift;  // from everything up to this matrix: weights, int8 activations, keys and values
};

/// The table as CSV.
inline std::string csv_report(const std::vector<ReportRow>& rows) {
  std::string text = "tensor,type,rows,cols,bytes,error,drift\n";
  for (const ReportRow& r : rows) {
    char line[160];
    std::snprintf(line, sizeof line, ",%s,%d,%d,%llu,%.5f,%.5f\n", type_name(r.type), r.rows, r.cols,
                  static_cast<unsigned long long>(r.bytes), r.error, r.drift);
    text += r.tensor + line;
  }
  return text;
}

/// The table as an HTML page, with a bar for each error.
inline std::string html_report(const std::vector<ReportRow>& rows, const std::string& title) {
  double largest = 1e-9;
  for (const ReportRow& r : rows) largest = std::max(largest, std::max(r.error, r.drift));
  std::string name;
  for (char c : title) name += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  std::string text = "<!DOCTYPE html><meta charset=\"utf-8\"><title>" + name +
                     "</title>\n<style>body{font:14px sans-serif}td{padding:0 1em 0 0}td.n{text-align:right}"
                     "div{height:6px;background:#c33}div.d{background:#bbb}</style>\n<h1>" +
                     name +
                     "</h1>\n<p>Relative error of each matrix's outputs on the calibration text. Red: from its own "
                     "quantized weights. Grey: from everything up to this "
                     "matrix.</p>\n<table><tr><th>matrix<th>type<th>shape<th>error<th>drift<th></tr>\n";
  for (const ReportRow& r : rows) {
    char cells[400];
    std::snprintf(cells, sizeof cells,
                  "<td>%s<td>%d x %d<td class=n>%.2f%%<td class=n>%.2f%%<td><div style=\"width:%.0fpx\"></div>"
                  "<div class=d style=\"width:%.0fpx\"></div></tr>\n",
                  type_name(r.type), r.rows, r.cols, 100 * r.error, 100 * r.drift, 400 * r.error / largest,
                  400 * r.drift / largest);
    text += "<tr><td>" + r.tensor + cells;
  }
  return text + "</table>\n";
}

/// Writes the report; path ends in .csv or .html.
inline bool write_report(const std::string& path, const std::string& title, const std::vector<ReportRow>& rows,
                         std::string& error) {
  const bool csv = path.size() > 4 && path.compare(path.size() - 4, 4, ".csv") == 0;
  return write_whole_file(path, csv ? csv_report(rows) : html_report(rows, title), error);
}

}  // namespace pocket

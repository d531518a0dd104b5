// test_data.hpp: finds the reference data that others made, and the test files that hold it.
//
// It lies beside the project, or where the environment variable POCKET_DATA says. Where it is not, the tests that need
// it are skipped and say so, unless POCKET_REQUIRE_DATA is set: then they fail.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "../../export/engine.hpp"
#include "files.hpp"

// The path of a file or folder of the reference data, "" if it is not there.
inline std::string data_path(const std::string& relative) {
  const char* folder = std::getenv("POCKET_DATA");
  if (!folder || !*folder) folder = POCKET_DATA_DIR;
  if (!*folder) return "";
  const std::string path = std::string(folder) + "/" + relative;
  return std::filesystem::exists(path) ? path : "";
}

// A real model that models/get has downloaded, "" if it is not there.
inline std::string downloaded_path(const std::string& relative) {
  const std::string path = std::string(POCKET_SOURCE_DIR) + "/models/downloads/" + relative;
  return std::filesystem::exists(path) ? path : "";
}

// A Python package that tests/setup gets, as the folder to name in PYTHONPATH, "" if it is not there.
inline std::string python_path(const std::string& package) {
  const std::string folder = std::string(POCKET_SOURCE_DIR) + "/build-python";
  return std::filesystem::exists(folder + "/" + package) ? folder : "";
}

inline bool data_required() {
  const char* required = std::getenv("POCKET_REQUIRE_DATA");
  return required && *required && std::string(required) != "0";
}

// Whether a text is whole characters.
inline bool is_utf8(std::string_view s) {
  while (!s.empty()) {
    const auto c = pocket::tokenizer_detail::read_utf8(s);
    if (c.state != pocket::tokenizer_detail::Utf8::whole) return false;
    s.remove_prefix(c.length);
  }
  return true;
}

inline constexpr char kWhereDataIs[] =
    "tests/setup gets models and Python packages, and POCKET_DATA names the folder of other data";

// Declares a path, and ends the test where it is "".
#define NEED_FILE(variable, found, what)                                                  \
  const std::string variable = found;                                                     \
  if (variable.empty()) {                                                                 \
    if (data_required()) FAIL() << what << ": not found, but POCKET_REQUIRE_DATA is set"; \
    GTEST_SKIP() << what << ": not found; " << kWhereDataIs;                              \
  }

// NEED_DATA(path, "tok512.model"); NEED_DOWNLOAD(path, "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf");
#define NEED_DATA(variable, relative) NEED_FILE(variable, data_path(relative), relative)
#define NEED_DOWNLOAD(variable, relative) NEED_FILE(variable, downloaded_path(relative), relative)
#define NEED_PYTHON(variable, package) NEED_FILE(variable, python_path(package), "the Python package " package)

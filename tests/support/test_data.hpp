// test_data.hpp: finds reference data, downloaded models and Python packages.
// Reference data is in a folder beside the project, or in the folder named by the environment variable POCKET_DATA.
// Tests whose data is missing are skipped with a message, or fail if POCKET_REQUIRE_DATA is set.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "../../export/engine.hpp"
#include "files.hpp"

// The path of a file or folder of the reference data, "" if it does not exist.
inline std::string data_path(const std::string& relative) {
  const char* folder = std::getenv("POCKET_DATA");
  if (!folder || !*folder) folder = POCKET_DATA_DIR;
  if (!*folder) return "";
  const std::string path = std::string(folder) + "/" + relative;
  return std::filesystem::exists(path) ? path : "";
}

// The path of a model downloaded by models/get, "" if it does not exist.
inline std::string downloaded_path(const std::string& relative) {
  const std::string path = std::string(POCKET_SOURCE_DIR) + "/models/downloads/" + relative;
  return std::filesystem::exists(path) ? path : "";
}

// The PYTHONPATH of a Python package installed by tests/setup, "" if it does not exist.
inline std::string python_path(const std::string& package) {
  const std::string folder = std::string(POCKET_SOURCE_DIR) + "/build-python";
  return std::filesystem::exists(folder + "/" + package) ? folder : "";
}

// Whether missing data is a failure.
inline bool data_required() {
  const char* required = std::getenv("POCKET_REQUIRE_DATA");
  return required && *required && std::string(required) != "0";
}

// Whether a text is valid UTF-8.
inline bool is_utf8(std::string_view s) {
  while (!s.empty()) {
    const auto c = pocket::tokenizer_detail::read_utf8(s);
    if (c.state != pocket::tokenizer_detail::Utf8::whole) return false;
    s.remove_prefix(c.length);
  }
  return true;
}

inline constexpr char kWhereDataIs[] =
    "tests/setup installs models and Python packages; POCKET_DATA names the folder of other data";

// Declares a path, and ends the test if it is "".
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

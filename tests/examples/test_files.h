// Where the tests find the model's files and leave their own.
#ifndef WAVEKV_TESTS_EXAMPLES_TEST_FILES_H_
#define WAVEKV_TESTS_EXAMPLES_TEST_FILES_H_

#include <algorithm>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace tinylm::testing {

// Tests run in the root of their runfiles.
inline std::string DataDirectory() { return "examples/tinylm/data"; }
inline std::string DataFile(const std::string& name) { return DataDirectory() + "/" + name; }

// A path of the running test alone.
inline std::string TemporaryFile(const std::string& name) {
  const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
  std::string unique = std::string(test->test_suite_name()) + "." + test->name() + "." + name;
  std::replace(unique.begin(), unique.end(), '/', '.');
  return ::testing::TempDir() + "/" + unique;
}

inline std::string WriteTemporaryFile(const std::string& name, const std::string& contents) {
  const std::string path = TemporaryFile(name);
  std::ofstream(path, std::ios::binary) << contents;
  return path;
}

}  // namespace tinylm::testing

#endif  // WAVEKV_TESTS_EXAMPLES_TEST_FILES_H_

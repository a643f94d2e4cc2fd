#include "tools/safetensors/safetensors.h"

#include <sys/stat.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/examples/test_files.h"
#include "tools/safetensors/half.h"

namespace safetensors {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using tinylm::testing::TemporaryFile;
using tinylm::testing::WriteTemporaryFile;

std::string FileBytes(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string bytes(sizeof(length), '\0');
  std::memcpy(bytes.data(), &length, sizeof(length));
  return bytes + header + data;
}

absl::StatusOr<File> ReadBytes(const std::string& bytes) {
  return File::Read(WriteTemporaryFile("safetensors", bytes));
}

TEST(SafetensorsTest, ReadsWhatTheWriterWrote) {
  Writer writer;
  writer.SetMetadata("note", "two \"words\"");
  ASSERT_TRUE(writer.AddHalves("a", {3}, {1.0f, -2.5f, 0.0f}).ok());
  ASSERT_TRUE(writer.AddInt32s("b", {2, 2}, {1, -2, 3, -4}).ok());
  ASSERT_TRUE(writer.AddInt32s("empty", {0, 7}, {}).ok());
  ASSERT_TRUE(writer.Add("scalar", DType::kF32, {}, std::string("\0\0\x80\x3f", 4)).ok());
  const std::string path = TemporaryFile("safetensors");
  ASSERT_TRUE(writer.Write(path).ok());

  const auto file = File::Read(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->metadata().at("note"), "two \"words\"");
  EXPECT_THAT(*file->Floats("a", {3}), ElementsAre(1.0f, -2.5f, 0.0f));
  EXPECT_THAT(*file->Int32s("b", {2, kAnySize}), ElementsAre(1, -2, 3, -4));
  EXPECT_THAT(*file->Int32s("empty", {0, 7}), ElementsAre());
  EXPECT_THAT(*file->Floats("scalar", {}), ElementsAre(1.0f));
  for (const auto& [name, tensor] : file->tensors()) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor.data) % DTypeBytes(tensor.dtype), 0u) << name;
  }
}

TEST(SafetensorsTest, ConvertsHalfAndBFloat16ToFloat) {
  const auto file =
      ReadBytes(FileBytes(R"({"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                          R"("b":{"dtype":"BF16","shape":[1],"data_offsets":[4,6]}}  )",
                          std::string("\x00\x3c\x01\x00\xc0\x3f", 6)));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*file->Floats("h", {2}), ElementsAre(1.0f, std::ldexp(1.0f, -24)));
  EXPECT_THAT(*file->Floats("b", {1}), ElementsAre(1.5f));
}

TEST(SafetensorsTest, NamesTheTensorThatIsNotAsAskedFor) {
  const auto file = ReadBytes(
      FileBytes(R"({"a":{"dtype":"I32","shape":[1,2],"data_offsets":[0,8]}})", "01234567"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->Int32s("b", {1}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(file->Int32s("b", {1}).status().ToString(), HasSubstr("'b' is missing"));
  EXPECT_THAT(file->Int32s("a", {2, kAnySize}).status().ToString(),
              HasSubstr("'a': expected shape [2, *], got [1, 2]"));
  EXPECT_THAT(file->Int32s("a", {2}).status().ToString(), HasSubstr("[1, 2]"));
  EXPECT_THAT(file->Floats("a", {1, 2}).status().ToString(),
              HasSubstr("'a': expected dtype F32, F16 or BF16, got I32"));
}

struct MalformedFile {
  const char* name;
  std::string bytes;
  const char* message;
};

class MalformedSafetensorsTest : public ::testing::TestWithParam<MalformedFile> {};

TEST_P(MalformedSafetensorsTest, IsRefusedWithTheReason) {
  const auto file = ReadBytes(GetParam().bytes);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(file.status().ToString(), HasSubstr(GetParam().message));
}

// One tensor 'a' with these fields, over 8 bytes of data.
std::string WithTensor(const std::string& fields) {
  return FileBytes("{\"a\":{" + fields + "}}", "01234567");
}

INSTANTIATE_TEST_SUITE_P(
    Files, MalformedSafetensorsTest,
    ::testing::Values(
        MalformedFile{"Empty", "", "at least 8 bytes, got 0"},
        MalformedFile{"LengthCutOff", "1234567", "at least 8 bytes, got 7"},
        MalformedFile{"HeaderBeyondTheEnd", std::string("\x03\0\0\0\0\0\0\0{}", 10),
                      "a header of at most 2 bytes, got 3"},
        MalformedFile{"HeaderLengthOfAllOnes", std::string(8, '\xff') + "{}",
                      "got 18446744073709551615"},
        MalformedFile{"NoHeader", FileBytes("", ""), "begin with '{'"},
        MalformedFile{"HeaderIsAnArray", FileBytes("[]", ""), "begin with '{'"},
        MalformedFile{"HeaderIsCutOff", FileBytes("{\"a\":", ""), "not valid JSON"},
        MalformedFile{"HeaderIsNotUtf8", FileBytes("{\"\xff\":1}", ""), "not valid JSON"},
        MalformedFile{"DeepNesting", WithTensor("\"shape\":" + std::string(100000, '[')),
                      "'a': expected integers >= 0 in shape, got an array"},
        MalformedFile{"TensorInATensor", WithTensor("\"dtype\":{}"),
                      "'a': unknown dtype an object"},
        MalformedFile{"ShapeIsAString", WithTensor("\"shape\":\"8\""),
                      "'a': shape is not an array, but \"8\""},
        MalformedFile{"TextBehindTheHeader", FileBytes("{}x", ""), "not valid JSON at byte 3"},
        MalformedFile{"MetadataTwice", FileBytes(R"({"__metadata__":{},"__metadata__":{}})", ""),
                      "the key '__metadata__' comes twice"},
        MalformedFile{"MetadataKeyTwice", FileBytes(R"({"__metadata__":{"x":"1","x":"2"}})", ""),
                      "the key 'x' comes twice"},
        MalformedFile{"SameTensorTwice",
                      FileBytes(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                                R"("a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                "01234567"),
                      "the key 'a' comes twice"},
        MalformedFile{"SameFieldTwice",
                      WithTensor(R"("dtype":"U8","dtype":"U8","shape":[8],"data_offsets":[0,8])"),
                      "the key 'dtype' comes twice"},
        MalformedFile{"TensorIsANumber", FileBytes("{\"a\":1}", ""), "'a': expected an object"},
        MalformedFile{"NoOffsets", WithTensor(R"("dtype":"U8","shape":[8])"),
                      "'a': the field data_offsets is missing"},
        MalformedFile{"UnknownField",
                      WithTensor(R"("dtype":"U8","shape":[8],"data_offsets":[0,8],"x":1)"),
                      "'a': expected dtype, shape and data_offsets alone"},
        MalformedFile{"UnknownDtype",
                      WithTensor(R"("dtype":"F17","shape":[8],"data_offsets":[0,8])"),
                      "'a': unknown dtype \"F17\""},
        MalformedFile{"TypeOfHalfBytes",
                      WithTensor(R"("dtype":"F4","shape":[16],"data_offsets":[0,8])"),
                      "'a': unknown dtype \"F4\""},
        MalformedFile{"NegativeSize",
                      WithTensor(R"("dtype":"U8","shape":[-8],"data_offsets":[0,8])"),
                      "'a': expected integers >= 0 in shape, got -8"},
        MalformedFile{"FractionalSize",
                      WithTensor(R"("dtype":"U8","shape":[8.5],"data_offsets":[0,8])"), "got 8.5"},
        MalformedFile{"ShapeOverflows",
                      WithTensor(R"("dtype":"F32","shape":[4294967296,4294967296],)"
                                 R"("data_offsets":[0,0])"),
                      "'a': shape [4294967296, 4294967296] overflows"},
        MalformedFile{"SizeBeyond64Bits",
                      WithTensor(R"("dtype":"U8","shape":[99999999999999999999],)"
                                 R"("data_offsets":[0,8])"),
                      "'a': expected integers >= 0"},
        MalformedFile{"OneOffset", WithTensor(R"("dtype":"U8","shape":[8],"data_offsets":[8])"),
                      "'a': expected two data_offsets, got [8]"},
        MalformedFile{"OffsetsReversed",
                      WithTensor(R"("dtype":"U8","shape":[8],"data_offsets":[8,0])"),
                      "within the 8 bytes of data, got [8, 0]"},
        MalformedFile{"OffsetsBeyondTheEnd",
                      WithTensor(R"("dtype":"U8","shape":[9],"data_offsets":[0,9])"),
                      "within the 8 bytes of data, got [0, 9]"},
        MalformedFile{"ShapeDisagreesWithOffsets",
                      WithTensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,8])"),
                      "'a': expected 12 bytes for F32 [3], got 8"},
        MalformedFile{"HoleBetweenTensors",
                      FileBytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                                R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                "01234567"),
                      "begin at offset 2, the next one begins at 4"},
        MalformedFile{"TensorsOverlap",
                      FileBytes(R"({"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},)"
                                R"("b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
                                "01234567"),
                      "begin at offset 6, the next one begins at 4"},
        MalformedFile{"DataBehindTheTensors",
                      WithTensor(R"("dtype":"U8","shape":[7],"data_offsets":[0,7])"),
                      "expected 7 bytes of data, got 8"},
        MalformedFile{"MetadataIsAList", FileBytes(R"({"__metadata__":[]})", ""),
                      "__metadata__ is not an object"},
        MalformedFile{"MetadataHoldsANumber", FileBytes(R"({"__metadata__":{"x":1}})", ""),
                      "__metadata__.x is not a string"}),
    [](const auto& test) { return test.param.name; });

TEST(SafetensorsTest, AMissingFileIsNotFoundAndWhatIsNoFileIsRefused) {
  EXPECT_EQ(File::Read("/nonexistent/file").status().code(), absl::StatusCode::kNotFound);
  for (const std::string& path : {::testing::TempDir(), std::string("/dev/zero")}) {
    EXPECT_THAT(File::Read(path).status().ToString(), HasSubstr("expected a regular file"));
  }
  const std::string pipe = TemporaryFile("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(File::Read(pipe).status().ToString(), HasSubstr("expected a regular file"));
  std::remove(pipe.c_str());
}

TEST(SafetensorsTest, ReadsTensorsAtAnyAddress) {
  // A header of odd length: nothing behind it is aligned.
  const std::string bytes = FileBytes(R"({"c":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                      R"("f":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},)"
                                      R"("i":{"dtype":"I32","shape":[1],"data_offsets":[5,9]}})",
                                      std::string("\x07\0\0\x80\x3f\x05\0\0\0", 9));
  const auto file = ReadBytes(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(*file->Floats("f", {1}), ElementsAre(1.0f));
  EXPECT_THAT(*file->Int32s("i", {1}), ElementsAre(5));
}

TEST(SafetensorsTest, ParsesBytesInPlace) {
  const std::string bytes =
      FileBytes(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", "ab");
  const auto file = File::Parse(
      absl::MakeConstSpan(reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()), "bytes");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(reinterpret_cast<const char*>(file->tensors().at("a").data),
            bytes.data() + bytes.size() - 2);
  EXPECT_THAT(File::Parse({}, "nothing").status().ToString(), HasSubstr("nothing: not a valid"));
}

TEST(SafetensorsTest, KeepsTypesThatItDoesNotConvert) {
  const auto file =
      ReadBytes(FileBytes(R"({"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},)"
                          R"("b":{"dtype":"C64","shape":[1],"data_offsets":[2,10]}})",
                          "0123456789"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().at("a").dtype, DType::kF8E4M3);
  EXPECT_THAT(file->Floats("a", {2}).status().ToString(), HasSubstr("got F8_E4M3"));
}

TEST(SafetensorsTest, AHeaderOfManyTensorsIsParsedInOneGo) {
  // Quadratic work would take minutes.
  std::string header = "{";
  constexpr int kTensors = 200000;
  for (int i = 0; i < kTensors; ++i) {
    header += (i == 0 ? "\"" : ",\"") + std::to_string(i) +
              R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  }
  const auto file = ReadBytes(FileBytes(header + "}", ""));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->tensors().size(), size_t{kTensors});
}

TEST(SafetensorsTest, MessagesStayShortAndPrintable) {
  // Besides the path of the file, which they name.
  const size_t length_max = 250 + testing::TempDir().size();
  const auto file = ReadBytes(FileBytes("{\"\\u001b[2J" + std::string(1000, 'x') + "\":1}", ""));
  EXPECT_THAT(file.status().ToString(), HasSubstr("'\\u001b[2Jxxx"));
  EXPECT_LT(file.status().ToString().size(), length_max);
  std::string shape = "1";
  for (int i = 0; i < 5000; ++i) shape += ",9";
  EXPECT_LT(ReadBytes(WithTensor(R"("dtype":"U8","data_offsets":[0,8],"shape":[)" + shape + "]"))
                .status()
                .ToString()
                .size(),
            length_max);
}

TEST(SafetensorsTest, StreamedRowsAreAskedForOnceAndInOrder) {
  constexpr int64_t kRows = 3000;  // more than are asked for at a time
  constexpr int64_t kRowBytes = 4096;
  Writer writer;
  int64_t next = 0;
  const auto rows = [&](int64_t first, int64_t count) {
    EXPECT_EQ(first, next);
    next = first + count;
    std::string bytes;
    for (int64_t row = first; row < next; ++row) bytes.append(kRowBytes, static_cast<char>(row));
    return bytes;
  };
  ASSERT_TRUE(writer.AddStreamed("a", DType::kU8, {kRows, kRowBytes}, rows).ok());
  ASSERT_TRUE(writer.AddInt32s("b", {1}, {7}).ok());
  const std::string path = TemporaryFile("streamed");
  ASSERT_TRUE(writer.Write(path).ok());
  EXPECT_EQ(next, kRows);
  const auto file = File::Read(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const Tensor& a = file->tensors().at("a");
  for (int64_t row = 0; row < kRows; ++row) {
    ASSERT_EQ(a.data[row * kRowBytes], static_cast<std::byte>(row)) << row;
  }
  EXPECT_THAT(*file->Int32s("b", {1}), ElementsAre(7));
}

TEST(SafetensorsTest, StreamedRowsOfAnotherSizeLeaveNoFile) {
  Writer writer;
  ASSERT_TRUE(
      writer.AddStreamed("a", DType::kU8, {2, 3}, [](int64_t, int64_t) { return "xyz"; }).ok());
  const std::string path = TemporaryFile("wrong_rows");
  const absl::Status status = writer.Write(path);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expected 6 bytes for 2 rows, got 3"));
  EXPECT_FALSE(File::Read(path).ok());
}

TEST(SafetensorsTest, TheWriterRefusesWhatItCouldNotRead) {
  Writer writer;
  EXPECT_FALSE(writer.Add("", DType::kU8, {1}, "x").ok());
  EXPECT_FALSE(writer.Add("__metadata__", DType::kU8, {1}, "x").ok());
  EXPECT_FALSE(writer.Add("a", DType::kU8, {-1}, "x").ok());
  EXPECT_FALSE(writer.Add("a", DType::kU8, {INT64_MAX, 2}, "x").ok());
  EXPECT_FALSE(writer.Add("a", DType::kF32, {1}, "x").ok());
  ASSERT_TRUE(writer.Add("a", DType::kU8, {1}, "x").ok());
  EXPECT_FALSE(writer.Add("a", DType::kU8, {1}, "x").ok());
  EXPECT_FALSE(writer.Write("/nonexistent/folder/file").ok());
}

TEST(HalfTest, EveryHalfSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), bits) << value;
    }
  }
}

TEST(HalfTest, RoundsToTheNearestAndTiesToEven) {
  EXPECT_EQ(FloatToHalf(1.0f + std::ldexp(1.0f, -11)), 0x3c00);                        // tie
  EXPECT_EQ(FloatToHalf(1.0f + 3 * std::ldexp(1.0f, -11)), 0x3c02);                    // tie
  EXPECT_EQ(FloatToHalf(std::nextafter(1.0f + std::ldexp(1.0f, -11), 2.0f)), 0x3c01);  // above
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(FloatToHalf(std::ldexp(1.0f, -25)), 0);  // tie
  EXPECT_EQ(FloatToHalf(std::ldexp(1.5f, -25)), 1);
}

}  // namespace
}  // namespace safetensors

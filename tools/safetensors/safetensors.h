// Files of named tensors in the safetensors format (github.com/huggingface/safetensors):
//
//   8 bytes    n, little endian
//   n bytes    JSON: {"__metadata__": {string: string},
//                     name: {"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
//   the rest   the tensors' bytes, row-major, without holes or overlaps
#ifndef WAVEKV_TOOLS_SAFETENSORS_SAFETENSORS_H_
#define WAVEKV_TOOLS_SAFETENSORS_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace safetensors {

enum class DType : uint8_t {
  kBool,
  kU8,
  kI8,
  kU16,
  kI16,
  kF16,
  kBF16,
  kU32,
  kI32,
  kF32,
  kU64,
  kI64,
  kF64,
  // Stored and checked; nothing here converts them.
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kC64,
};

// Bytes of one element.
int64_t DTypeBytes(DType dtype);

// As in the file: "F32".
const char* DTypeName(DType dtype);

using Shape = std::vector<int64_t>;

// In a shape that is asked for: any size.
inline constexpr int64_t kAnySize = -1;

// "[2, 3]"; kAnySize is written as "*". Only the first sizes of a long shape.
std::string ShapeString(const Shape& shape);

// A name or value of a file for a message: shortened, and in printable ASCII.
std::string Printable(const std::string& text);

// A tensor of a File; lives as long as the file or a copy of it.
struct Tensor {
  DType dtype = DType::kU8;
  Shape shape;
  const std::byte* data = nullptr;  // at any address: the format does not align tensors
  int64_t num_bytes = 0;            // fits dtype and shape
};

// A file in memory. Everything but the numbers in the tensors has been checked: a malformed file is
// INVALID_ARGUMENT with a message that names the tensor and what is wrong with it. Immutable, so
// thread-safe; copies share the bytes.
class File {
 public:
  // Maps the file: only the parts that are used are read, so it may be larger than memory. Nobody
  // may shorten or rewrite it meanwhile: reading behind its new end raises SIGBUS. NOT_FOUND for a
  // file that does not exist.
  static absl::StatusOr<File> Read(const std::string& path);

  // A file whose bytes are in memory already and stay there as long as the result or a copy of it.
  // `name` stands for it in messages.
  static absl::StatusOr<File> Parse(absl::Span<const std::byte> bytes, std::string name);

  const std::string& name() const { return name_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

  // NOT_FOUND when the tensor is missing; INVALID_ARGUMENT when its dtype or shape differs from
  // what is asked for, naming both.
  absl::StatusOr<std::vector<int32_t>> Int32s(const std::string& name, const Shape& shape) const;
  // F32, F16 and BF16 tensors.
  absl::StatusOr<std::vector<float>> Floats(const std::string& name, const Shape& shape) const;

 private:
  class HeaderReader;

  File() = default;
  absl::Status ParseBytes(absl::Span<const std::byte> bytes);
  absl::Status ParseHeader(absl::Span<const char> header, int64_t data_bytes);
  absl::Status CheckCoverage(int64_t data_bytes) const;
  absl::StatusOr<const Tensor*> Find(const std::string& name, const Shape& shape) const;

  std::string name_;
  std::map<std::string, std::string> metadata_;
  std::map<std::string, Tensor> tensors_;
  const std::byte* data_ = nullptr;      // the tensors' bytes
  std::shared_ptr<const void> mapping_;  // keeps them mapped; null for Parse
};

// Collects tensors and writes them as one file.
class Writer {
 public:
  void SetMetadata(std::string key, std::string value);

  // INVALID_ARGUMENT for a name that is taken, empty or "__metadata__", and for bytes that do not
  // fit dtype and shape.
  absl::Status Add(std::string name, DType dtype, Shape shape, std::string bytes);

  absl::Status AddInt32s(std::string name, Shape shape, absl::Span<const int32_t> values);
  // Stored as F16, rounded to nearest even.
  absl::Status AddHalves(std::string name, Shape shape, absl::Span<const float> values);

  // A tensor that is too large to hold: rows(first, count) gives the bytes of that run of its first
  // dimension while the file is written, called once for every row, in order.
  using RowSource = std::function<std::string(int64_t first, int64_t count)>;
  absl::Status AddStreamed(std::string name, DType dtype, Shape shape, RowSource rows);

  // Replaces `path` as a whole or leaves it alone. Tensors are aligned to their element size.
  absl::Status Write(const std::string& path) const;

 private:
  struct Entry {
    std::string name;
    DType dtype;
    Shape shape;
    int64_t num_bytes;
    std::string bytes;
    RowSource rows;  // in place of bytes
  };

  absl::StatusOr<Entry*> AddEntry(std::string name, DType dtype, Shape shape);
  static absl::Status WriteTensor(const Entry& entry, std::FILE* file);

  std::map<std::string, std::string> metadata_;
  std::vector<Entry> entries_;
  std::set<std::string> names_;  // of the entries
};

}  // namespace safetensors

#endif  // WAVEKV_TOOLS_SAFETENSORS_SAFETENSORS_H_

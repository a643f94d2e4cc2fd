#include "tools/safetensors/safetensors.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "tools/safetensors/half.h"

namespace safetensors {

using Json = nlohmann::json;

namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kLengthBytes = 8;
// The format's own limit: no real header comes near it, and a hostile one cannot exhaust memory.
constexpr uint64_t kHeaderBytesMax = 100'000'000;
constexpr size_t kDataAlignment = 64;
constexpr char kMetadataKey[] = "__metadata__";

struct DTypeInfo {
  DType dtype;
  const char* name;
  int64_t bytes;
};

constexpr DTypeInfo kDTypes[] = {
    {DType::kBool, "BOOL", 1}, {DType::kU8, "U8", 1},   {DType::kI8, "I8", 1},
    {DType::kU16, "U16", 2},   {DType::kI16, "I16", 2}, {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2}, {DType::kU32, "U32", 4}, {DType::kI32, "I32", 4},
    {DType::kF32, "F32", 4},   {DType::kU64, "U64", 8}, {DType::kI64, "I64", 8},
    {DType::kF64, "F64", 8},
};

const DTypeInfo& Info(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }

bool ParseDType(const std::string& name, DType* dtype) {
  for (const DTypeInfo& info : kDTypes) {
    if (name == info.name) {
      *dtype = info.dtype;
      return true;
    }
  }
  return false;
}

// False when the product does not fit.
bool ByteSize(DType dtype, const Shape& shape, int64_t* num_bytes) {
  int64_t product = DTypeBytes(dtype);
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(product, size, &product)) return false;
  }
  *num_bytes = product;
  return true;
}

template <typename T>
std::vector<T> Copy(const Tensor& tensor) {
  std::vector<T> values(tensor.num_bytes / sizeof(T));
  // Offsets in a file need not be aligned.
  if (!values.empty()) std::memcpy(values.data(), tensor.data, tensor.num_bytes);
  return values;
}

// A value of a header in a message: short, whatever the file holds.
std::string Quote(const Json& value) {
  constexpr size_t kQuoteMax = 40;
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() <= kQuoteMax ? text : text.substr(0, kQuoteMax) + "...";
}

absl::Status DTypeError(absl::string_view file, absl::string_view tensor,
                        absl::string_view expected, DType got) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": tensor '", tensor, "': expected dtype ",
                                                 expected, ", got ", DTypeName(got)));
}

absl::Status Malformed(absl::string_view file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": not a valid safetensors file: ", what));
}

// False unless `value` is an integer in [0, 2^63).
bool ParseSize(const Json& value, int64_t* size) {
  if (!value.is_number_unsigned()) return false;
  const uint64_t number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(INT64_MAX)) return false;
  *size = static_cast<int64_t>(number);
  return true;
}

// The parser keeps the last of two equal keys; the format forbids them.
struct HeaderChecks {
  std::vector<std::set<std::string>> keys;  // of the open objects
  std::string duplicate_key;
  bool too_deep = false;

  bool operator()(int depth, Json::parse_event_t event, Json& value) {
    constexpr int kDepthMax = 3;  // header, tensor, array, number
    if (depth > kDepthMax) {
      too_deep = true;
      return false;  // not built, so that depth costs no memory
    }
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(value).second) {
      duplicate_key = value;
    }
    return true;
  }
};

std::shared_ptr<std::byte> AllocateAligned(int64_t num_bytes) {
  const size_t rounded =
      (static_cast<size_t>(num_bytes) / kDataAlignment + 1) * kDataAlignment;  // never 0
  return {static_cast<std::byte*>(std::aligned_alloc(kDataAlignment, rounded)), std::free};
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using OpenFile = std::unique_ptr<std::FILE, CloseFile>;

absl::Status ErrnoError(absl::string_view path, absl::string_view action) {
  const int error = errno;
  const std::string message = absl::StrCat(path, ": cannot ", action, ": ", std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
}

}  // namespace

int64_t DTypeBytes(DType dtype) { return Info(dtype).bytes; }

const char* DTypeName(DType dtype) { return Info(dtype).name; }

std::string ShapeString(const Shape& shape) {
  return absl::StrCat("[",
                      absl::StrJoin(shape, ", ",
                                    [](std::string* out, int64_t size) {
                                      size == kAnySize ? absl::StrAppend(out, "*")
                                                       : absl::StrAppend(out, size);
                                    }),
                      "]");
}

absl::StatusOr<File> File::Read(const std::string& path) {
  const OpenFile input(std::fopen(path.c_str(), "rb"));
  if (input == nullptr) return ErrnoError(path, "open");
  if (std::fseek(input.get(), 0, SEEK_END) != 0) return ErrnoError(path, "seek");
  const int64_t file_bytes = std::ftell(input.get());
  // Opening a directory succeeds and its end is far away; reading it fails below.
  if (file_bytes < 0) return ErrnoError(path, "seek");
  std::rewind(input.get());

  if (file_bytes < kLengthBytes) {
    return Malformed(path, absl::StrCat("expected at least 8 bytes, got ", file_bytes));
  }
  uint64_t header_bytes = 0;
  if (std::fread(&header_bytes, kLengthBytes, 1, input.get()) != 1) {
    return ErrnoError(path, "read");
  }
  const auto header_bytes_max =
      std::min(kHeaderBytesMax, static_cast<uint64_t>(file_bytes - kLengthBytes));
  if (header_bytes > header_bytes_max) {
    return Malformed(path, absl::StrCat("expected a header of at most ", header_bytes_max,
                                        " bytes, got ", header_bytes));
  }
  std::string header(header_bytes, '\0');
  const auto data_bytes = file_bytes - kLengthBytes - static_cast<int64_t>(header_bytes);
  File file;
  file.name_ = path;
  file.data_ = AllocateAligned(data_bytes);
  if (file.data_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": no memory for ", data_bytes, " bytes"));
  }
  if (std::fread(header.data(), 1, header.size(), input.get()) != header.size() ||
      std::fread(file.data_.get(), 1, data_bytes, input.get()) != static_cast<size_t>(data_bytes)) {
    return ErrnoError(path, "read");
  }
  const absl::Status status = file.ParseHeader(header, data_bytes);
  if (!status.ok()) return status;
  return file;
}

absl::Status File::ParseHeader(const std::string& header, int64_t data_bytes) {
  if (header.empty() || header[0] != '{') {
    return Malformed(name_, "expected the header to begin with '{'");
  }
  HeaderChecks checks;
  const Json json = Json::parse(header, std::ref(checks), /*allow_exceptions=*/false);
  if (json.is_discarded()) return Malformed(name_, "the header is not valid JSON");
  if (checks.too_deep) return Malformed(name_, "the header is nested too deeply");
  if (!checks.duplicate_key.empty()) {
    return Malformed(name_, absl::StrCat("the key '", checks.duplicate_key, "' comes twice"));
  }
  for (const auto& [key, value] : json.items()) {
    const absl::Status status =
        key == kMetadataKey ? ParseMetadata(value) : ParseTensor(key, value, data_bytes);
    if (!status.ok()) return status;
  }
  return CheckCoverage(data_bytes);
}

absl::Status File::ParseMetadata(const Json& json) {
  if (!json.is_object()) return Malformed(name_, "__metadata__ is not an object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      return Malformed(name_, absl::StrCat("__metadata__.", key, " is not a string"));
    }
    metadata_[key] = value.get<std::string>();
  }
  return absl::OkStatus();
}

absl::Status File::ParseTensor(const std::string& name, const Json& json, int64_t data_bytes) {
  const auto malformed = [&](absl::string_view what) {
    return Malformed(name_, absl::StrCat("tensor '", name, "': ", what));
  };
  if (!json.is_object()) return malformed("expected an object");
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!json.contains(field)) return malformed(absl::StrCat("the field ", field, " is missing"));
  }
  if (json.size() != 3) return malformed("expected dtype, shape and data_offsets alone");

  Tensor tensor;
  const Json& dtype = json["dtype"];
  if (!dtype.is_string() || !ParseDType(dtype.get<std::string>(), &tensor.dtype)) {
    return malformed(absl::StrCat("unknown dtype ", Quote(dtype)));
  }
  const Json& shape = json["shape"];
  if (!shape.is_array()) return malformed("shape is not an array");
  for (const Json& element : shape) {
    int64_t size = 0;
    if (!ParseSize(element, &size)) {
      return malformed(absl::StrCat("expected sizes >= 0 in shape, got ", Quote(element)));
    }
    tensor.shape.push_back(size);
  }
  if (!ByteSize(tensor.dtype, tensor.shape, &tensor.num_bytes)) {
    return malformed(absl::StrCat("shape ", ShapeString(tensor.shape), " overflows"));
  }
  const Json& offsets = json["data_offsets"];
  int64_t begin = 0;
  int64_t end = 0;
  if (!offsets.is_array() || offsets.size() != 2 || !ParseSize(offsets[0], &begin) ||
      !ParseSize(offsets[1], &end)) {
    return malformed(absl::StrCat("expected two data_offsets >= 0, got ", Quote(offsets)));
  }
  if (begin > end || end > data_bytes) {
    return malformed(absl::StrCat("expected data_offsets within the ", data_bytes,
                                  " bytes of data, got [", begin, ", ", end, "]"));
  }
  if (end - begin != tensor.num_bytes) {
    return malformed(absl::StrCat("expected ", tensor.num_bytes, " bytes for ",
                                  DTypeName(tensor.dtype), " ", ShapeString(tensor.shape), ", got ",
                                  end - begin));
  }
  tensor.data = data_.get() + begin;
  tensors_[name] = std::move(tensor);
  return absl::OkStatus();
}

absl::Status File::CheckCoverage(int64_t data_bytes) const {
  std::vector<std::pair<int64_t, int64_t>> extents;
  for (const auto& [name, tensor] : tensors_) {
    const int64_t begin = tensor.data - data_.get();
    extents.emplace_back(begin, begin + tensor.num_bytes);
  }
  std::sort(extents.begin(), extents.end());
  int64_t covered = 0;
  for (const auto& [begin, end] : extents) {
    if (begin != covered) {
      return Malformed(name_, absl::StrCat("expected a tensor to begin at offset ", covered,
                                           ", the next one begins at ", begin));
    }
    covered = end;
  }
  if (covered != data_bytes) {
    return Malformed(name_, absl::StrCat("expected ", covered, " bytes of data, got ", data_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<const Tensor*> File::Find(const std::string& name, const Shape& shape) const {
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat(name_, ": tensor '", name, "' is missing"));
  }
  const Tensor& tensor = it->second;
  const bool matches = std::equal(
      tensor.shape.begin(), tensor.shape.end(), shape.begin(), shape.end(),
      [](int64_t got, int64_t expected) { return expected == kAnySize || got == expected; });
  if (!matches) {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": tensor '", name, "': expected shape ",
                                                   ShapeString(shape), ", got ",
                                                   ShapeString(tensor.shape)));
  }
  return &tensor;
}

absl::StatusOr<std::vector<int32_t>> File::Int32s(const std::string& name,
                                                  const Shape& shape) const {
  const absl::StatusOr<const Tensor*> tensor = Find(name, shape);
  if (!tensor.ok()) return tensor.status();
  if ((*tensor)->dtype != DType::kI32) return DTypeError(name_, name, "I32", (*tensor)->dtype);
  return Copy<int32_t>(**tensor);
}

absl::StatusOr<std::vector<float>> File::Floats(const std::string& name, const Shape& shape) const {
  const absl::StatusOr<const Tensor*> tensor = Find(name, shape);
  if (!tensor.ok()) return tensor.status();
  if ((*tensor)->dtype == DType::kF32) return Copy<float>(**tensor);
  const auto convert = [&](float (*to_float)(uint16_t)) {
    const std::vector<uint16_t> bits = Copy<uint16_t>(**tensor);
    std::vector<float> floats(bits.size());
    std::transform(bits.begin(), bits.end(), floats.begin(), to_float);
    return floats;
  };
  switch ((*tensor)->dtype) {
    case DType::kF16:
      return convert(&HalfToFloat);
    case DType::kBF16:
      return convert(&BFloat16ToFloat);
    default:
      return DTypeError(name_, name, "F32, F16 or BF16", (*tensor)->dtype);
  }
}

void Writer::SetMetadata(std::string key, std::string value) {
  metadata_[std::move(key)] = std::move(value);
}

absl::Status Writer::Add(std::string name, DType dtype, Shape shape, std::string bytes) {
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "': ", what));
  };
  if (name.empty() || name == kMetadataKey) return invalid("the name is reserved");
  for (const Entry& entry : entries_) {
    if (entry.name == name) return invalid("the name is taken");
  }
  int64_t num_bytes = 0;
  const bool negative =
      std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 0; });
  if (negative || !ByteSize(dtype, shape, &num_bytes)) {
    return invalid(absl::StrCat("shape ", ShapeString(shape), " is out of range"));
  }
  if (static_cast<int64_t>(bytes.size()) != num_bytes) {
    return invalid(absl::StrCat("expected ", num_bytes, " bytes for ", DTypeName(dtype), " ",
                                ShapeString(shape), ", got ", bytes.size()));
  }
  entries_.push_back({std::move(name), dtype, std::move(shape), std::move(bytes)});
  return absl::OkStatus();
}

absl::Status Writer::AddInt32s(std::string name, Shape shape, absl::Span<const int32_t> values) {
  return Add(
      std::move(name), DType::kI32, std::move(shape),
      std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(int32_t)));
}

absl::Status Writer::AddHalves(std::string name, Shape shape, absl::Span<const float> values) {
  std::vector<uint16_t> halves(values.size());
  std::transform(values.begin(), values.end(), halves.begin(), FloatToHalf);
  return Add(
      std::move(name), DType::kF16, std::move(shape),
      std::string(reinterpret_cast<const char*>(halves.data()), halves.size() * sizeof(uint16_t)));
}

absl::Status Writer::Write(const std::string& path) const {
  // Widest elements first, so that every tensor is aligned without holes between them.
  std::vector<const Entry*> order;
  for (const Entry& entry : entries_) order.push_back(&entry);
  std::stable_sort(order.begin(), order.end(), [](const Entry* a, const Entry* b) {
    return DTypeBytes(a->dtype) > DTypeBytes(b->dtype);
  });

  Json header = Json::object();
  if (!metadata_.empty()) header[kMetadataKey] = metadata_;
  int64_t offset = 0;
  for (const Entry* entry : order) {
    const auto end = offset + static_cast<int64_t>(entry->bytes.size());
    header[entry->name] = {{"dtype", DTypeName(entry->dtype)},
                           {"shape", entry->shape},
                           {"data_offsets", {offset, end}}};
    offset = end;
  }
  // Names that are not UTF-8 are written with replacement characters rather than thrown at.
  std::string text = header.dump(-1, ' ', false, Json::error_handler_t::replace);
  text.append((kLengthBytes - text.size() % kLengthBytes) % kLengthBytes, ' ');
  const uint64_t header_bytes = text.size();

  const std::string temporary = absl::StrCat(path, ".partial");
  OpenFile output(std::fopen(temporary.c_str(), "wb"));
  if (output == nullptr) return ErrnoError(temporary, "create");
  bool written = std::fwrite(&header_bytes, kLengthBytes, 1, output.get()) == 1 &&
                 std::fwrite(text.data(), 1, text.size(), output.get()) == text.size();
  for (const Entry* entry : order) {
    written = written && std::fwrite(entry->bytes.data(), 1, entry->bytes.size(), output.get()) ==
                             entry->bytes.size();
  }
  written = std::fclose(output.release()) == 0 && written;
  if (!written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const absl::Status status = ErrnoError(path, "write");
    std::remove(temporary.c_str());
    return status;
  }
  return absl::OkStatus();
}

}  // namespace safetensors

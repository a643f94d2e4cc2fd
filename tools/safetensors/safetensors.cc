#include "tools/safetensors/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <optional>
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
constexpr int64_t kStreamBytes = 1 << 22;  // that a RowSource is asked for at a time, about
constexpr char kMetadataKey[] = "__metadata__";

struct DTypeInfo {
  DType dtype;
  const char* name;
  int64_t bytes;
};

constexpr DTypeInfo kDTypes[] = {
    {DType::kBool, "BOOL", 1},      {DType::kU8, "U8", 1},          {DType::kI8, "I8", 1},
    {DType::kU16, "U16", 2},        {DType::kI16, "I16", 2},        {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2},      {DType::kU32, "U32", 4},        {DType::kI32, "I32", 4},
    {DType::kF32, "F32", 4},        {DType::kU64, "U64", 8},        {DType::kI64, "I64", 8},
    {DType::kF64, "F64", 8},        {DType::kF8E4M3, "F8_E4M3", 1}, {DType::kF8E5M2, "F8_E5M2", 1},
    {DType::kF8E8M0, "F8_E8M0", 1}, {DType::kC64, "C64", 8},
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

std::string Shortened(const std::string& text) {
  constexpr size_t kLengthMax = 100;
  return text.size() <= kLengthMax ? text : text.substr(0, kLengthMax) + "...";
}

std::string Quote(const std::string& text) { return absl::StrCat("\"", Printable(text), "\""); }

absl::Status DTypeError(absl::string_view file, absl::string_view tensor,
                        absl::string_view expected, DType got) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": tensor '", tensor, "': expected dtype ",
                                                 expected, ", got ", DTypeName(got)));
}

absl::Status Malformed(absl::string_view file, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": not a valid safetensors file: ", what));
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using OpenFile = std::unique_ptr<std::FILE, CloseFile>;

class Descriptor {
 public:
  explicit Descriptor(const std::string& path)
      : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int fd() const { return fd_; }

 private:
  const int fd_;
};

absl::Status ErrnoError(absl::string_view path, absl::string_view action) {
  const int error = errno;
  const std::string message = absl::StrCat(path, ": cannot ", action, ": ", std::strerror(error));
  return error == ENOENT ? absl::NotFoundError(message) : absl::UnavailableError(message);
}

}  // namespace

int64_t DTypeBytes(DType dtype) { return Info(dtype).bytes; }

const char* DTypeName(DType dtype) { return Info(dtype).name; }

std::string Printable(const std::string& text) {
  const std::string quoted = Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
  return Shortened(quoted.substr(1, quoted.size() - 2));
}

std::string ShapeString(const Shape& shape) {
  constexpr size_t kSizesMax = 16;
  const size_t shown = std::min(shape.size(), kSizesMax);
  return absl::StrCat("[",
                      absl::StrJoin(shape.begin(), shape.begin() + shown, ", ",
                                    [](std::string* out, int64_t size) {
                                      size == kAnySize ? absl::StrAppend(out, "*")
                                                       : absl::StrAppend(out, size);
                                    }),
                      shown < shape.size() ? ", ...]" : "]");
}

absl::StatusOr<File> File::Read(const std::string& path) {
  // Not blocking: opening a pipe must not wait for its writer.
  const Descriptor input(path);
  if (input.fd() < 0) return ErrnoError(path, "open");
  struct stat status = {};
  if (fstat(input.fd(), &status) != 0) return ErrnoError(path, "stat");
  if (!S_ISREG(status.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a regular file"));
  }
  const auto file_bytes = static_cast<size_t>(status.st_size);
  File file;
  file.name_ = path;
  absl::Span<const std::byte> bytes;
  if (file_bytes > 0) {
    void* const address = mmap(nullptr, file_bytes, PROT_READ, MAP_PRIVATE, input.fd(), 0);
    if (address == MAP_FAILED) return ErrnoError(path, "map");
    file.mapping_.reset(address, [file_bytes](void* mapped) { munmap(mapped, file_bytes); });
    bytes = absl::MakeConstSpan(static_cast<const std::byte*>(address), file_bytes);
  }
  const absl::Status parsed = file.ParseBytes(bytes);
  if (!parsed.ok()) return parsed;
  return file;
}

absl::StatusOr<File> File::Parse(absl::Span<const std::byte> bytes, std::string name) {
  File file;
  file.name_ = std::move(name);
  const absl::Status parsed = file.ParseBytes(bytes);
  if (!parsed.ok()) return parsed;
  return file;
}

absl::Status File::ParseBytes(absl::Span<const std::byte> bytes) {
  const auto file_bytes = static_cast<int64_t>(bytes.size());
  if (file_bytes < kLengthBytes) {
    return Malformed(name_, absl::StrCat("expected at least 8 bytes, got ", file_bytes));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  const auto header_bytes_max =
      std::min(kHeaderBytesMax, static_cast<uint64_t>(file_bytes - kLengthBytes));
  if (header_bytes > header_bytes_max) {
    return Malformed(name_, absl::StrCat("expected a header of at most ", header_bytes_max,
                                         " bytes, got ", header_bytes));
  }
  const char* const header = reinterpret_cast<const char*>(bytes.data() + kLengthBytes);
  data_ = bytes.data() + kLengthBytes + header_bytes;
  return ParseHeader(absl::MakeConstSpan(header, header_bytes),
                     file_bytes - kLengthBytes - static_cast<int64_t>(header_bytes));
}

// Takes the header's JSON as it is parsed: work and memory stay linear in its size, and the first
// thing that does not belong there ends it.
class File::HeaderReader : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(File* file, int64_t data_bytes) : file_(file), data_bytes_(data_bytes) {}

  const absl::Status& status() const { return status_; }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kNowhere:
        place_ = Place::kHeader;
        return true;
      case Place::kEntry:
        place_ = entry_ == kMetadataKey ? Place::kMetadata : Place::kTensor;
        tensor_ = Tensor();
        shape_.reset();
        offsets_.reset();
        dtype_.reset();
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() override {
    if (place_ == Place::kTensor && !AddTensor()) return false;
    place_ = place_ == Place::kHeader ? Place::kNowhere : Place::kHeader;
    return true;
  }

  bool key(std::string& name) override {
    if (place_ == Place::kHeader) {
      const bool is_new = name == kMetadataKey ? !std::exchange(has_metadata_, true)
                                               : !file_->tensors_.contains(name);
      if (!is_new) return Twice(name);
      place_ = Place::kEntry;
      entry_ = name;
      return true;
    }
    key_ = name;
    if (place_ == Place::kMetadata) {
      return !file_->metadata_.contains(name) || Twice(name);
    }
    const bool known = name == "dtype" || name == "shape" || name == "data_offsets";
    if (!known) return BadTensor("expected dtype, shape and data_offsets alone");
    const bool is_new = name == "dtype"   ? !dtype_.has_value()
                        : name == "shape" ? !shape_.has_value()
                                          : !offsets_.has_value();
    return is_new || Twice(name);
  }

  bool start_array(size_t) override {
    if (place_ != Place::kTensor || key_ == "dtype") return Unexpected("an array");
    place_ = Place::kArray;
    Array().emplace();
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool string(std::string& text) override {
    if (place_ == Place::kMetadata) {
      file_->metadata_[key_] = text;
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") return Unexpected(Quote(text));
    dtype_.emplace();
    return ParseDType(text, &*dtype_) || BadTensor(absl::StrCat("unknown dtype ", Quote(text)));
  }

  bool number_unsigned(uint64_t number) override {
    if (place_ != Place::kArray || number > static_cast<uint64_t>(INT64_MAX)) {
      return Unexpected(absl::StrCat(number));
    }
    Array()->push_back(static_cast<int64_t>(number));
    return true;
  }
  bool number_integer(int64_t number) override { return Unexpected(absl::StrCat(number)); }
  bool number_float(double, const std::string& text) override {
    return Unexpected(Printable(text));
  }
  bool boolean(bool value) override { return Unexpected(value ? "true" : "false"); }
  bool null() override { return Unexpected("null"); }
  bool binary(Json::binary_t&) override { return Unexpected("bytes"); }  // JSON text has none

  bool parse_error(size_t position, const std::string&, const Json::exception&) override {
    return Fail(absl::StrCat("the header is not valid JSON at byte ", position));
  }

 private:
  enum class Place {
    kNowhere,   // outside the header's object
    kHeader,    // in it
    kEntry,     // behind a key of it
    kMetadata,  // in __metadata__
    kTensor,    // in a tensor's object
    kArray,     // in its shape or data_offsets
  };

  std::optional<Shape>& Array() { return key_ == "shape" ? shape_ : offsets_; }

  bool Fail(absl::string_view what) {
    status_ = Malformed(file_->name_, what);
    return false;
  }
  bool Twice(const std::string& name) {
    return Fail(absl::StrCat("the key '", Printable(name), "' comes twice"));
  }
  bool BadTensor(absl::string_view what) {
    return Fail(absl::StrCat("tensor '", Printable(entry_), "': ", what));
  }

  // A value that does not belong where it stands.
  bool Unexpected(absl::string_view got) {
    if (place_ == Place::kEntry && entry_ == kMetadataKey) {
      return Fail(absl::StrCat("__metadata__ is not an object, but ", got));
    }
    if (place_ == Place::kEntry) return BadTensor(absl::StrCat("expected an object, got ", got));
    if (place_ == Place::kMetadata) {
      return Fail(absl::StrCat("__metadata__.", Printable(key_), " is not a string, but ", got));
    }
    if (place_ == Place::kTensor && key_ == "dtype") {
      return BadTensor(absl::StrCat("unknown dtype ", got));
    }
    if (place_ == Place::kTensor) {
      return BadTensor(absl::StrCat(key_, " is not an array, but ", got));
    }
    return BadTensor(absl::StrCat("expected integers >= 0 in ", key_, ", got ", got));
  }

  bool AddTensor() {
    const char* const missing = !dtype_.has_value()     ? "dtype"
                                : !shape_.has_value()   ? "shape"
                                : !offsets_.has_value() ? "data_offsets"
                                                        : nullptr;
    if (missing != nullptr) return BadTensor(absl::StrCat("the field ", missing, " is missing"));
    if (offsets_->size() != 2) {
      return BadTensor(absl::StrCat("expected two data_offsets, got ", ShapeString(*offsets_)));
    }
    tensor_.dtype = *dtype_;
    tensor_.shape = std::move(*shape_);
    if (!ByteSize(tensor_.dtype, tensor_.shape, &tensor_.num_bytes)) {
      return BadTensor(absl::StrCat("shape ", ShapeString(tensor_.shape), " overflows"));
    }
    const int64_t begin = (*offsets_)[0];
    const int64_t end = (*offsets_)[1];
    if (begin > end || end > data_bytes_) {
      return BadTensor(absl::StrCat("expected data_offsets within the ", data_bytes_,
                                    " bytes of data, got [", begin, ", ", end, "]"));
    }
    if (end - begin != tensor_.num_bytes) {
      return BadTensor(absl::StrCat("expected ", tensor_.num_bytes, " bytes for ",
                                    DTypeName(tensor_.dtype), " ", ShapeString(tensor_.shape),
                                    ", got ", end - begin));
    }
    tensor_.data = file_->data_ + begin;
    file_->tensors_[entry_] = std::move(tensor_);
    return true;
  }

  File* const file_;
  const int64_t data_bytes_;
  absl::Status status_;
  Place place_ = Place::kNowhere;
  std::string entry_;  // the last key of the header
  std::string key_;    // the last key inside an entry
  bool has_metadata_ = false;
  Tensor tensor_;
  std::optional<DType> dtype_;
  std::optional<Shape> shape_;
  std::optional<Shape> offsets_;
};

absl::Status File::ParseHeader(absl::Span<const char> header, int64_t data_bytes) {
  if (header.empty() || header[0] != '{') {
    return Malformed(name_, "expected the header to begin with '{'");
  }
  HeaderReader reader(this, data_bytes);
  Json::sax_parse(header.begin(), header.end(), &reader);
  if (!reader.status().ok()) return reader.status();
  return CheckCoverage(data_bytes);
}

absl::Status File::CheckCoverage(int64_t data_bytes) const {
  std::vector<std::pair<int64_t, int64_t>> extents;
  for (const auto& [name, tensor] : tensors_) {
    const int64_t begin = tensor.data - data_;
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

absl::StatusOr<Writer::Entry*> Writer::AddEntry(std::string name, DType dtype, Shape shape) {
  const auto invalid = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("tensor '", name, "': ", what));
  };
  if (name.empty() || name == kMetadataKey) return invalid("the name is reserved");
  if (names_.contains(name)) return invalid("the name is taken");
  int64_t num_bytes = 0;
  const bool negative =
      std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size < 0; });
  if (negative || !ByteSize(dtype, shape, &num_bytes)) {
    return invalid(absl::StrCat("shape ", ShapeString(shape), " is out of range"));
  }
  names_.insert(name);
  entries_.push_back({std::move(name), dtype, std::move(shape), num_bytes, {}, nullptr});
  return &entries_.back();
}

absl::Status Writer::Add(std::string name, DType dtype, Shape shape, std::string bytes) {
  const absl::StatusOr<Entry*> entry = AddEntry(std::move(name), dtype, std::move(shape));
  if (!entry.ok()) return entry.status();
  if (static_cast<int64_t>(bytes.size()) != (*entry)->num_bytes) {
    const absl::Status status = absl::InvalidArgumentError(
        absl::StrCat("tensor '", (*entry)->name, "': expected ", (*entry)->num_bytes, " bytes for ",
                     DTypeName(dtype), " ", ShapeString((*entry)->shape), ", got ", bytes.size()));
    names_.erase((*entry)->name);
    entries_.pop_back();
    return status;
  }
  (*entry)->bytes = std::move(bytes);
  return absl::OkStatus();
}

absl::Status Writer::AddStreamed(std::string name, DType dtype, Shape shape, RowSource rows) {
  const absl::StatusOr<Entry*> entry = AddEntry(std::move(name), dtype, std::move(shape));
  if (!entry.ok()) return entry.status();
  (*entry)->rows = std::move(rows);
  return absl::OkStatus();
}

absl::Status Writer::WriteTensor(const Entry& entry, std::FILE* file) {
  const auto write = [&](const std::string& bytes) {
    return std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
  };
  if (entry.rows == nullptr) {
    return write(entry.bytes) ? absl::OkStatus() : ErrnoError(entry.name, "write");
  }
  const int64_t num_rows = entry.shape.empty() ? 1 : entry.shape[0];
  if (num_rows == 0) return absl::OkStatus();
  const int64_t row_bytes = entry.num_bytes / num_rows;
  const int64_t run = std::max<int64_t>(1, kStreamBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t row = 0; row < num_rows; row += run) {
    const int64_t count = std::min(run, num_rows - row);
    const std::string bytes = entry.rows(row, count);
    if (static_cast<int64_t>(bytes.size()) != count * row_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("tensor '", entry.name, "': expected ",
                                                     count * row_bytes, " bytes for ", count,
                                                     " rows, got ", bytes.size()));
    }
    if (!write(bytes)) return ErrnoError(entry.name, "write");
  }
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
    const int64_t end = offset + entry->num_bytes;
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
  absl::Status status = absl::OkStatus();
  if (std::fwrite(&header_bytes, kLengthBytes, 1, output.get()) != 1 ||
      std::fwrite(text.data(), 1, text.size(), output.get()) != text.size()) {
    status = ErrnoError(temporary, "write");
  }
  for (const Entry* entry : order) {
    if (status.ok()) status = WriteTensor(*entry, output.get());
  }
  const bool closed = std::fclose(output.release()) == 0;
  if (status.ok() && (!closed || std::rename(temporary.c_str(), path.c_str()) != 0)) {
    status = ErrnoError(path, "write");
  }
  if (!status.ok()) {
    std::remove(temporary.c_str());
    return status;
  }
  return absl::OkStatus();
}

}  // namespace safetensors

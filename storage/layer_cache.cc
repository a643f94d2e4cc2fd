#include "storage/layer_cache.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/status_macros.h"

namespace wavekv {
namespace {

int64_t NumChunks(int64_t num_tokens) { return (num_tokens + kChunkTokens - 1) / kChunkTokens; }

void CopyRows(const ModelSpec& model, ArenaMemory& memory, const RowChunk& from, RowChunk& to,
              int64_t count) {
  for (int head = 0; head < model.num_kv_heads; ++head) {
    memory.Copy(to.keys(head, 0), from.keys(head, 0), count * model.key_row_bytes());
    memory.Copy(to.values(head, 0), from.values(head, 0), count * model.value_row_bytes());
  }
}

}  // namespace

PendingAppend::~PendingAppend() {
  for (const RowSlice& slice : slices_) slice.chunk->Unclaim(slice.row, slice.count);
}

int64_t LayerCache::AppendBytes(int64_t num_rows) const {
  const int64_t begin = contents_.length;
  const int64_t end = begin + num_rows;
  const int64_t tail = tail_begin();
  const auto chunks_before = [&](int64_t position) {
    return NumChunks(std::max<int64_t>(0, position - tail));
  };
  const bool opens_sinks = begin == 0 && num_rows > 0;
  return (opens_sinks ? Arena::RoundUp(rule_.sink_tokens * model_.token_bytes()) : 0) +
         (chunks_before(end) - chunks_before(begin)) *
             Arena::RoundUp(kChunkTokens * model_.token_bytes());
}

absl::StatusOr<PendingAppend> LayerCache::PrepareAppend(MemoryAccount& account, int64_t num_rows) {
  PendingAppend append;
  append.first_position_ = contents_.length;
  append.num_rows_ = num_rows;
  for (int64_t done = 0; done < num_rows;) {
    WAVEKV_ASSIGN_OR_RETURN(RowSlice slice,
                            PrepareSlice(account, contents_.length + done, num_rows - done));
    done += slice.count;
    append.slices_.push_back(std::move(slice));
  }
  return append;
}

absl::StatusOr<RowSlice> LayerCache::PrepareSlice(MemoryAccount& account, int64_t position,
                                                  int64_t rows_left) const {
  RowSlice slice;
  slice.is_sink = position < rule_.sink_tokens;
  const int64_t capacity = slice.is_sink ? rule_.sink_tokens : kChunkTokens;
  const int64_t offset = slice.is_sink ? position : position - tail_begin();
  slice.row = offset % capacity;
  slice.count = std::min(rows_left, capacity - slice.row);

  std::shared_ptr<RowChunk> last;  // the chunk that already holds the row before, if any
  if (slice.row > 0) last = slice.is_sink ? contents_.sinks : contents_.tail[offset / capacity];
  if (last != nullptr && last->Claim(slice.row, slice.count)) {
    slice.chunk = std::move(last);
    slice.place = RowSlice::Place::kInPlace;
    return slice;
  }
  WAVEKV_ASSIGN_OR_RETURN(slice.chunk,
                          RowChunk::Create(account, model_, capacity, position - slice.row));
  slice.chunk->Claim(0, slice.row + slice.count);
  if (last != nullptr) {
    CopyRows(model_, account.memory(), *last, *slice.chunk, slice.row);
    slice.place = RowSlice::Place::kReplace;
  }
  return slice;
}

void PendingAppend::ApplyTo(LayerContents& contents) const {
  for (const RowSlice& slice : slices_) {
    if (slice.place == RowSlice::Place::kInPlace) continue;
    if (slice.is_sink) {
      contents.sinks = slice.chunk;
    } else if (slice.place == RowSlice::Place::kReplace) {
      contents.tail.back() = slice.chunk;
    } else {
      contents.tail.push_back(slice.chunk);
    }
  }
  contents.length += num_rows_;
}

void LayerCache::Commit(PendingAppend append) {
  std::lock_guard<std::mutex> lock(mutex_);
  append.ApplyTo(contents_);
  append.slices_.clear();
}

std::vector<std::shared_ptr<Segment>> LayerCache::Cut(bool decoding) {
  std::vector<std::shared_ptr<Segment>> new_segments;
  const int64_t least = decoding ? rule_.update_tokens : rule_.segment_tokens;
  if (contents_.length - rule_.window_tokens - tail_begin() < least) return new_segments;
  const auto cut = [&](int64_t num_tokens) {
    const int64_t begin = contents_.tail_begin(rule_);
    const auto first = contents_.tail.begin();
    const auto last = first + num_tokens / kChunkTokens;
    auto segment = std::make_shared<Segment>(
        begin, begin + num_tokens,
        RowChunks(std::make_move_iterator(first), std::make_move_iterator(last)));
    contents_.tail.erase(first, last);
    contents_.segments.push_back(segment);
    new_segments.push_back(std::move(segment));
  };
  const auto num_cuttable = [&] {
    return contents_.length - rule_.window_tokens - contents_.tail_begin(rule_);
  };

  std::lock_guard<std::mutex> lock(mutex_);
  while (num_cuttable() >= rule_.segment_tokens) cut(rule_.segment_tokens);
  if (decoding && num_cuttable() >= rule_.update_tokens) {
    cut(num_cuttable() / rule_.update_tokens * rule_.update_tokens);
  }
  return new_segments;
}

std::vector<std::shared_ptr<Segment>> LayerCache::RetryUnsealable() {
  std::vector<std::shared_ptr<Segment>> retried;
  std::lock_guard<std::mutex> lock(mutex_);
  for (const std::shared_ptr<Segment>& segment : contents_.segments) {
    if (segment->RetryUnsealable()) retried.push_back(segment);
  }
  return retried;
}

std::vector<SegmentRun> LayerCache::BeginMerges() {
  std::vector<SegmentRun> runs;
  if (!rule_.merge_segments) return runs;
  std::vector<std::shared_ptr<Segment>> replaced;
  std::lock_guard<std::mutex> lock(mutex_);
  replaced = TakeUpMergesLocked();
  const auto& segments = contents_.segments;
  size_t first = 0;
  for (size_t last = 0; last < segments.size(); ++last) {
    const auto num_tokens = [&] { return segments[last]->end() - segments[first]->begin(); };
    while (num_tokens() > rule_.segment_tokens) ++first;
    if (num_tokens() < rule_.segment_tokens) continue;
    if (first < last && segments[last]->BeginMerge()) {
      runs.emplace_back(segments.begin() + first, segments.begin() + last + 1);
    }
    first = last + 1;
  }
  return runs;
}

std::vector<std::shared_ptr<Segment>> LayerCache::TakeUpMergesLocked() const {
  std::vector<std::shared_ptr<Segment>> replaced;
  if (!rule_.merge_segments) return replaced;
  auto& segments = contents_.segments;
  for (size_t i = 0; i < segments.size(); ++i) {
    std::shared_ptr<Segment> merged = segments[i]->merged();
    if (merged == nullptr) continue;
    size_t first = i;
    while (segments[first]->begin() > merged->begin()) --first;
    const auto begin = segments.begin() + first;
    const auto end = segments.begin() + i + 1;
    replaced.insert(replaced.end(), begin, end);
    *begin = std::move(merged);
    segments.erase(begin + 1, end);
    i = first;
  }
  return replaced;
}

void LayerCache::TakeUpMerges() const {
  std::vector<std::shared_ptr<Segment>> replaced;  // freed, and zeroed, after the lock
  std::lock_guard<std::mutex> lock(mutex_);
  replaced = TakeUpMergesLocked();
}

int64_t LayerCache::tail_begin() const {
  // Without a tail, all tokens are in the segments, or none are.
  return contents_.tail.empty() ? std::max(contents_.length, rule_.sink_tokens)
                                : contents_.tail.front()->position_begin();
}

LayerContents LayerCache::Snapshot() const {
  LayerContents contents;
  SnapshotTo(contents);
  return contents;
}

void LayerCache::SnapshotTo(LayerContents& contents) const {
  contents.Clear();  // what it held last is freed, and zeroed, before the lock
  std::vector<std::shared_ptr<Segment>> replaced;
  std::lock_guard<std::mutex> lock(mutex_);
  replaced = TakeUpMergesLocked();
  contents = contents_;
}

int64_t LayerCache::length() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return contents_.length;
}

absl::StatusOr<LayerContents> LayerCache::PrefixOf(LayerContents prefix, MemoryAccount& account,
                                                   int64_t num_tokens) const {
  if (num_tokens < 0 || num_tokens > prefix.length) {
    return absl::OutOfRangeError(
        absl::StrCat("prefix must be in [0, ", prefix.length, "], got ", num_tokens));
  }
  prefix.length = num_tokens;
  if (num_tokens == 0) prefix.sinks.reset();

  RowChunks boundary = std::move(prefix.tail);  // chunks from which the new tail is taken
  int64_t boundary_begin = prefix.tail_begin(rule_);
  while (!prefix.segments.empty() && prefix.segments.back()->end() > num_tokens) {
    const std::shared_ptr<Segment> segment = std::move(prefix.segments.back());
    prefix.segments.pop_back();
    boundary_begin = segment->begin();
    boundary.clear();
    if (num_tokens <= segment->begin()) continue;
    Segment::Pin pin = segment->Read();
    boundary = std::move(pin.chunks);
    if (pin.sealed != nullptr) {
      WAVEKV_ASSIGN_OR_RETURN(
          boundary, Unseal(account, *segment, *pin.sealed, num_tokens - segment->begin()));
    }
  }
  boundary.resize(NumChunks(std::max<int64_t>(0, num_tokens - boundary_begin)));
  prefix.tail = std::move(boundary);
  return prefix;
}

absl::StatusOr<RowChunks> LayerCache::Unseal(MemoryAccount& account, const Segment& segment,
                                             const SealedSegment& sealed,
                                             int64_t num_tokens) const {
  RowChunks chunks;
  for (int64_t first = 0; first < num_tokens; first += kChunkTokens) {
    WAVEKV_ASSIGN_OR_RETURN(
        std::shared_ptr<RowChunk> chunk,
        RowChunk::Create(account, model_, kChunkTokens, segment.begin() + first));
    chunk->Claim(0, std::min(kChunkTokens, num_tokens - first));
    chunks.push_back(std::move(chunk));
  }
  const int64_t key_bytes = model_.key_row_bytes();
  const int64_t value_bytes = model_.value_row_bytes();
  std::vector<std::byte*> first_rows;
  for (const auto& chunk : chunks) first_rows.push_back(chunk->keys(0, 0));
  for (int head = 0; head < model_.num_kv_heads; ++head) {
    const SealedHead& sealed_head = sealed.heads[head];
    if (sealed_head.rows == nullptr) {
      WAVEKV_RETURN_IF_ERROR(
          account.memory().Unseal(sealed_head.index, num_tokens, first_rows, kChunkTokens,
                                  head * kChunkTokens * (key_bytes + value_bytes)));
      continue;
    }
    const auto copy = [&](int64_t token, const std::byte* key, const std::byte* value) {
      if (token >= num_tokens) return;
      const RowChunk& chunk = *chunks[token / kChunkTokens];
      const int64_t row = token % kChunkTokens;
      std::memcpy(chunk.keys(head, row), key, key_bytes);
      std::memcpy(chunk.values(head, row), value, value_bytes);
    };
    WAVEKV_RETURN_IF_ERROR(ForEachRow(sealed_head, copy));
  }
  return chunks;
}

void LayerCache::Replace(LayerContents contents) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::swap(contents_, contents);  // what was there is freed, and zeroed, after the lock
}

}  // namespace wavekv

// WAVEKV_LOG(kInfo, "format {}", ...): gives out a message; where its level is off, nothing is
// evaluated or allocated.
#ifndef WAVEKV_STORAGE_LOG_MESSAGE_H_
#define WAVEKV_STORAGE_LOG_MESSAGE_H_

#include <string>

#include "fmt/format.h"
#include "wavekv/log.h"

namespace wavekv {

void GiveOut(LogLevel level, const std::string& message);

}  // namespace wavekv

#define WAVEKV_LOG(level, ...)                                                \
  do {                                                                        \
    if (::wavekv::LogLevel::level <= ::wavekv::GetLogLevel()) {               \
      ::wavekv::GiveOut(::wavekv::LogLevel::level, fmt::format(__VA_ARGS__)); \
    }                                                                         \
  } while (false)

#endif  // WAVEKV_STORAGE_LOG_MESSAGE_H_

// The version of wavekv, in this one place.
//
// Semantic versioning. Before 1.0 a minor version may change the API, and the shared library's
// soname carries it (libwavekv.so.0.7): a program never starts with a library it was not built for.
#ifndef WAVEKV_API_VERSION_H_
#define WAVEKV_API_VERSION_H_

#include "wavekv/export.h"

#define WAVEKV_VERSION_MAJOR 0
#define WAVEKV_VERSION_MINOR 7
#define WAVEKV_VERSION_PATCH 0
#define WAVEKV_VERSION "0.7.0"

namespace wavekv {

// Of the library that runs: WAVEKV_VERSION of the headers it was built with.
WAVEKV_EXPORT const char* Version();

}  // namespace wavekv

#endif  // WAVEKV_API_VERSION_H_

#include "wavekv/version.h"

namespace wavekv {

const char* Version() { return WAVEKV_VERSION; }

}  // namespace wavekv

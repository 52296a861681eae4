// Pages of a fresh output. The system hands them out one by one, at the first write to each, which for a large output takes
// longer than its values do.
#pragma once

#include <cstdint>

namespace normwright {

// Asks for huge pages (of 2 MB, with a fault each instead of 512) where an output is so large that it is mapped for itself, and
// its pages are not there yet. That holds for this block alone, until it is given back; memory that has been used before is
// left as it is.
void expect_writes(void* output, int64_t bytes);

}  // namespace normwright

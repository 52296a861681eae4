#include "pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace normwright {

#if defined(__linux__)
namespace {

constexpr uintptr_t kHuge = 2 << 20;

bool is_there(uintptr_t address) {
  static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
  unsigned char there = 1;
  return mincore(reinterpret_cast<void*>(address / page * page), page, &there) != 0 || (there & 1);
}

}  // namespace

void expect_writes(void* output, int64_t bytes) {
  constexpr int64_t kOwnMapping = 32 << 20;  // larger blocks are no part of glibc's heap
  if (!output || bytes <= kOwnMapping) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(output) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(output) + uintptr_t(bytes)) / kHuge * kHuge;
  if (first >= last || is_there(first) || is_there((first + last) / 2)) return;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}
#else
void expect_writes(void*, int64_t) {}
#endif

}  // namespace normwright
